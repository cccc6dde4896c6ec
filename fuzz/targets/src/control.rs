//! Requests on the control socket.

use memvisor::control::{
    api::{
        MemoryInfo, RegistersInfo, StateInfo, Stats, TRANSLATE_MAX, TranslateAnswer, TranslateRequest, VmInfo,
    },
    http::{self, BODY_MAX, HEAD_MAX},
};
use memvisor_inspect::Facts;
use serde_json::from_slice;

use crate::check_error;

/// What a connection receives, as it would arrive in one piece and in two.
pub fn control_http(data: &[u8]) {
    let mut rest = data;
    loop {
        match http::parse(rest) {
            Ok(None) => {
                assert!(rest.len() <= HEAD_MAX + BODY_MAX, "{} bytes are not enough", rest.len());
                break;
            }
            Ok(Some((request, used))) => {
                assert!(used > 0 && used <= rest.len() && request.body.len() <= BODY_MAX);
                assert!(!request.path.contains('?'));
                let (now, later) = rest.split_at(used);
                assert_eq!(http::parse(now), Ok(Some((request.clone(), used))), "what follows matters");
                for cut in [used - 1, used / 2] {
                    // Less is waited for, never taken for a whole request.
                    assert_eq!(http::parse(&now[..cut]).unwrap_or(None), None);
                }
                bodies(&request.body);
                rest = later;
            }
            Err(error) => {
                check_error(&error);
                let status = error.status();
                let head = http::response_head(status, "application/json", 2, false);
                assert!((400..500).contains(&status) && head.ends_with("\r\n\r\n"));
                break;
            }
        }
    }
    // The client reads what a guest's VMM says.
    bodies(data);
}

fn bodies(body: &[u8]) {
    if let Ok(request) = from_slice::<TranslateRequest>(body) {
        assert!(request.vas.len() <= TRANSLATE_MAX || body.len() > TRANSLATE_MAX);
    }
    let _ = from_slice::<TranslateAnswer>(body);
    let _ = from_slice::<VmInfo>(body);
    let _ = from_slice::<MemoryInfo>(body);
    let _ = from_slice::<RegistersInfo>(body);
    let _ = from_slice::<Stats>(body);
    let _ = from_slice::<StateInfo>(body);
    let _ = from_slice::<Facts>(body);
}
