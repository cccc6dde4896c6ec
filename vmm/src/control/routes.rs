//! What each request does.

use std::{os::fd::OwnedFd, sync::mpsc::Sender};

use serde::Serialize;

use super::{
    api::{
        ErrorInfo, MemoryInfo, RegistersInfo, RestInfo, StateInfo, Stats, TRANSLATE_MAX, TranslateAnswer,
        TranslateRequest, VmInfo,
    },
    http::Request,
};
use crate::{
    run::{RunEvent, Vm, VmState, pause_at_rest},
    vcpu::VcpuError,
};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// Descriptors that travel with it.
    pub descriptors: Vec<OwnedFd>,
}

impl Answer {
    fn json(status: u16, body: &impl Serialize) -> Answer {
        match serde_json::to_vec(body) {
            Ok(body) => Answer { status, content_type: "application/json", body, descriptors: Vec::new() },
            Err(error) => Answer::error(500, error.to_string()),
        }
    }

    /// An answer that says what is wrong.
    pub fn error(status: u16, error: String) -> Answer {
        let body = serde_json::to_vec(&ErrorInfo { error }).unwrap_or_default();
        Answer { status, content_type: "application/json", body, descriptors: Vec::new() }
    }
}

impl From<VcpuError> for Answer {
    fn from(error: VcpuError) -> Answer {
        Answer::error(409, error.to_string())
    }
}

/// All paths, for the error that names them.
const PATHS: [&str; 11] = [
    "GET /vm",
    "GET /vm/memory",
    "GET /vm/registers",
    "GET /vm/facts",
    "GET /vm/stats",
    "GET /vm/console",
    "PUT /vm/pause",
    "PUT /vm/rest",
    "PUT /vm/resume",
    "PUT /vm/shutdown",
    "POST /vm/translate",
];

/// Serves `request`.
pub fn serve(vm: &Vm, quit: &Sender<RunEvent>, request: &Request) -> Answer {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/vm") => Answer::json(200, &info(vm)),
        ("GET", "/vm/memory") => memory(vm),
        ("GET", "/vm/registers") => {
            vm.registers().map_or_else(Answer::from, |cpus| Answer::json(200, &RegistersInfo { cpus }))
        }
        ("GET", "/vm/facts") => Answer::json(200, &vm.facts),
        ("GET", "/vm/stats") => Answer::json(200, &Stats::of(vm)),
        ("GET", "/vm/console") => match vm.console_tail() {
            Some(tail) => Answer {
                status: 200,
                content_type: "text/plain; charset=utf-8",
                body: String::from_utf8_lossy(&tail).into_owned().into_bytes(),
                descriptors: Vec::new(),
            },
            None => Answer::error(409, "the guest waits for the reader of its output: pause it first".into()),
        },
        ("PUT", "/vm/pause") => {
            vm.pause();
            Answer::json(200, &StateInfo { state: vm.state() })
        }
        ("PUT", "/vm/rest") => rest(vm),
        ("PUT", "/vm/resume") => {
            vm.resume();
            Answer::json(200, &StateInfo { state: vm.state() })
        }
        ("PUT", "/vm/shutdown") => match quit.send(RunEvent::Quit("the control socket".into())) {
            Ok(()) => Answer::json(202, &StateInfo { state: VmState::Held }),
            Err(_) => Answer::error(409, "the guest has ended already".into()),
        },
        ("POST", "/vm/translate") => translate(vm, &request.body),
        (_, path) if PATHS.iter().any(|known| known.split(' ').nth(1) == Some(path)) => Answer::error(
            405,
            format!("{} cannot be used with {path}; there are: {}", request.method, PATHS.join(", ")),
        ),
        (_, path) => Answer::error(404, format!("no such path {path:?}; there are: {}", PATHS.join(", "))),
    }
}

fn info(vm: &Vm) -> VmInfo {
    VmInfo {
        name: vm.name.clone(),
        state: vm.state(),
        pid: std::process::id(),
        machine: vm.facts.machine.clone(),
        regions: vm.slots().to_vec(),
        root_gpa: vm.device.root_gpa(),
        stats: Stats::of(vm),
    }
}

/// A guest that does not run stays where it is, and nobody is asked who is busy.
fn rest(vm: &Vm) -> Answer {
    if vm.state() != VmState::Running {
        return Answer::json(200, &RestInfo { state: vm.state(), busy: None });
    }
    // A guest of which nobody can say whether it rests is paused, too.
    let busy = pause_at_rest(vm).inspect_err(|error| tracing::info!("{error}")).ok();
    Answer::json(200, &RestInfo { state: vm.state(), busy })
}

fn memory(vm: &Vm) -> Answer {
    match vm.descriptors() {
        Ok(descriptors) => {
            Answer { descriptors, ..Answer::json(200, &MemoryInfo { regions: vm.slots().to_vec() }) }
        }
        Err(error) => Answer::error(500, format!("cannot open guest memory again: {error}")),
    }
}

fn translate(vm: &Vm, body: &[u8]) -> Answer {
    let request: TranslateRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => {
            return Answer::error(
                400,
                format!("body must be {{\"vcpu\": N, \"vas\": [ADDRESS, ...]}}: {error}"),
            );
        }
    };
    if request.vas.len() > TRANSLATE_MAX {
        return Answer::error(413, format!("at most {TRANSLATE_MAX} addresses in one request"));
    }
    let Some(vcpu) = vm.vcpus().iter().find(|vcpu| vcpu.index() == request.vcpu) else {
        return Answer::error(404, format!("no cpu {}: this guest has {}", request.vcpu, vm.vcpus().len()));
    };
    vcpu.translate(request.vas)
        .map_or_else(Answer::from, |translations| Answer::json(200, &TranslateAnswer { translations }))
}
