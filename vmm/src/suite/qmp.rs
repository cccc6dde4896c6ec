//! A client of QEMU's control socket (QMP): JSON objects, one a line, an answer for each command, events
//! in between. Only what the suites need: pause, resume, registers, translate.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use memvisor_inspect::CpuRegisters;
use serde_json::{Value, json};
use thiserror::Error;

/// How long QEMU may take for an answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Why QEMU did not do as told.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket did not come up, or broke.
    #[error("QEMU's control socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The answer is not what the protocol promises.
    #[error("QEMU's control socket: {command}: unexpected answer {answer}")]
    Answer {
        /// The command, or "greeting".
        command: String,
        /// What came.
        answer: String,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects to the socket, which QEMU makes at start, and takes the greeting.
    ///
    /// # Errors
    /// [`QmpError`] if the socket does not come up within `patience`, or does not speak QMP.
    pub fn connect(path: &Path, patience: Duration) -> Result<Qmp, QmpError> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() >= patience => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut qmp = Qmp { reader: BufReader::new(stream.try_clone()?), writer: stream };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Answer { command: "greeting".to_owned(), answer: greeting.to_string() });
        }
        qmp.execute("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// Stops all CPUs.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn pause(&mut self) -> Result<(), QmpError> {
        self.execute("stop", &Value::Null).map(drop)
    }

    /// Lets all CPUs go on.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn resume(&mut self) -> Result<(), QmpError> {
        self.execute("cont", &Value::Null).map(drop)
    }

    /// The guest-physical address behind `va` on the first CPU; `None` if it has none.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn translate(&mut self, va: u64) -> Result<Option<u64>, QmpError> {
        let command = format!("gva2gpa {va:#x}");
        let answer = self.monitor(&command)?;
        let text = answer.trim();
        if text == "Unmapped" {
            return Ok(None);
        }
        let gpa = text.strip_prefix("gpa:").and_then(|number| parse_hex(number.trim()));
        gpa.map(Some).ok_or(QmpError::Answer { command, answer })
    }

    /// The control registers, instruction pointer and general registers of every CPU.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn registers(&mut self, cpus: u32) -> Result<Vec<CpuRegisters>, QmpError> {
        let mut all = Vec::new();
        for index in 0..cpus {
            let command = "info registers".to_owned();
            let answer = self.monitor_of(&command, index)?;
            match read_registers(index, &answer) {
                Some(registers) => all.push(registers),
                None => {
                    let answer = answer.lines().take(3).collect::<Vec<_>>().join(" / ");
                    return Err(QmpError::Answer { command, answer });
                }
            }
        }
        Ok(all)
    }

    fn monitor(&mut self, line: &str) -> Result<String, QmpError> {
        self.monitor_of(line, 0)
    }

    /// Each command has a monitor of its own, so the monitor's `cpu N` would choose for nobody.
    fn monitor_of(&mut self, line: &str, cpu: u32) -> Result<String, QmpError> {
        let command = json!({ "command-line": line, "cpu-index": cpu });
        let answer = self.execute("human-monitor-command", &command)?;
        match answer {
            Value::String(text) => Ok(text),
            other => Err(QmpError::Answer { command: line.to_owned(), answer: other.to_string() }),
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        writeln!(self.writer, "{request}")?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                continue;
            }
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(QmpError::Answer { command: command.to_owned(), answer: answer.to_string() }),
            };
        }
    }

    fn read(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            let closed = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "QEMU closed it");
            return Err(closed.into());
        }
        serde_json::from_str(&line)
            .map_err(|_| QmpError::Answer { command: "read".to_owned(), answer: line.trim().to_owned() })
    }
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// Reads `NAME=HEX` words out of `info registers`. Segment lines are `CS =0008 base limit flags`.
fn read_registers(index: u32, text: &str) -> Option<CpuRegisters> {
    // "DS" also stands among the flags of other segments, so an occurrence counts only with its value.
    let word = |name: &str| {
        text.match_indices(name).find_map(|(at, _)| {
            let before = text.get(..at)?.chars().next_back();
            let rest = text.get(at + name.len()..)?.trim_start_matches(' ').strip_prefix('=')?;
            let alone = before.is_none_or(|c| !c.is_ascii_alphanumeric());
            rest.split_whitespace().next().filter(|_| alone).and_then(parse_hex)
        })
    };
    let base = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once('=')?.1.split_whitespace().nth(1).and_then(parse_hex)
    };
    let selector = |name: &str| word(name).and_then(|value| u16::try_from(value).ok());
    const GPR: [&str; 16] = [
        "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RSP", "RBP", "R8", "R9", "R10", "R11", "R12", "R13",
        "R14", "R15",
    ];
    let mut gpr = [0; 16];
    for (value, name) in gpr.iter_mut().zip(GPR) {
        *value = word(name)?;
    }
    Some(CpuRegisters {
        index,
        gpr,
        rip: word("RIP")?,
        rflags: word("RFL")?,
        cr0: word("CR0")?,
        cr2: word("CR2")?,
        cr3: word("CR3")?,
        cr4: word("CR4")?,
        efer: word("EFER")?,
        selectors: [
            selector("CS")?,
            selector("DS")?,
            selector("ES")?,
            selector("FS")?,
            selector("GS")?,
            selector("SS")?,
        ],
        fs_base: base("FS")?,
        gs_base: base("GS")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // As QEMU 7.2 prints it.
    const TEXT: &str = "\r\nCPU#1\r
RAX=0000000000000001 RBX=0000000000000002 RCX=0000000000000003 RDX=0000000000000004\r
RSI=0000000000000005 RDI=0000000000000006 RBP=0000000000000008 RSP=0000000000000007\r
R8 =0000000000000009 R9 =000000000000000a R10=000000000000000b R11=000000000000000c\r
R12=000000000000000d R13=000000000000000e R14=000000000000000f R15=0000000000000010\r
RIP=ffffffff80001234 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0010 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
DS =0020 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
FS =0000 0000000000001000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
GS =0000 ffff888000002000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
LDT=0000 0000000000000000 0000ffff 00008200 DPL=0 LDT\r
GDT=     ffffffff80003000 0000004f\r
CR0=80010033 CR2=00000000000000aa CR3=0000000000345000 CR4=00001620\r
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r
EFER=0000000000000d01\r
";

    #[test]
    fn registers_are_read_from_the_monitors_text() {
        let registers = read_registers(1, TEXT).unwrap();
        let expected: Vec<u64> = (1..=16).collect();
        assert_eq!(registers.gpr.to_vec(), expected);
        assert_eq!((registers.rip, registers.rflags), (0xffff_ffff_8000_1234, 0x46));
        assert_eq!((registers.cr3, registers.cr4, registers.efer), (0x34_5000, 0x1620, 0xd01));
        assert_eq!(registers.selectors, [8, 0x20, 0x10, 0, 0, 0x18]);
        assert_eq!((registers.fs_base, registers.gs_base), (0x1000, 0xffff_8880_0000_2000));
        assert_eq!(registers.levels(), Some(5));
    }

    #[test]
    fn a_text_without_registers_is_refused() {
        assert_eq!(read_registers(0, "invalid CPU index"), None);
    }

    /// A socket that answers each line with the next of `answers`.
    fn server(answers: &[&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let answers = answers.to_vec();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\":{}}\n{\"event\":\"RESUME\"}\n{\"return\":{}}\n").unwrap();
            lines.next().unwrap().unwrap();
            for answer in answers {
                lines.next().unwrap().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (folder, path)
    }

    #[test]
    fn translations_are_read_and_events_passed_over() {
        let (_folder, path) = server(&[
            "{\"event\":\"STOP\"}\n{\"return\":\"gpa: 0x1234\\r\\n\"}\n",
            "{\"return\":\"Unmapped\\r\\n\"}\n",
            "{\"return\":\"what?\\r\\n\"}\n",
            "{\"error\":{\"desc\":\"no\"}}\n",
        ]);
        let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
        assert_eq!(qmp.translate(1).unwrap(), Some(0x1234));
        assert_eq!(qmp.translate(2).unwrap(), None);
        assert!(qmp.translate(3).is_err());
        assert!(qmp.pause().unwrap_err().to_string().contains("no"));
    }
}
