//! Starting commands and watching the clock while they print.

use std::{
    ffi::OsString,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;

/// How a command went.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From before it was started to the first byte looked for.
    pub first_byte: Duration,
    /// From before it was started to its end.
    pub exit: Duration,
}

/// Runs `command` and looks for `byte` in what it prints.
///
/// # Errors
/// If it cannot be started, does not print the byte, or ends with another exit code than `code`.
pub fn time(command: &[OsString], byte: u8, code: i32) -> anyhow::Result<Timing> {
    let shown = || show(command);
    let begin = Instant::now();
    let mut child = spawn(command, Stdio::null())?;
    let mut stdout = child.stdout.take().context("a pipe was asked for")?;
    let mut first_byte = None;
    let mut buffer = [0; 4096];
    loop {
        let len = stdout.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        if first_byte.is_none() && buffer[..len].contains(&byte) {
            first_byte = Some(begin.elapsed());
        }
    }
    let status = child.wait()?;
    let exit = begin.elapsed();
    anyhow::ensure!(status.code() == Some(code), "{} ended with {status}, not {code}", shown());
    let first_byte = first_byte.with_context(|| format!("{} printed no byte {byte:#x}", shown()))?;
    Ok(Timing { first_byte, exit })
}

/// Runs `command` to its end and returns how long it took and what it printed.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(command: &[OsString]) -> anyhow::Result<(Duration, String)> {
    let begin = Instant::now();
    let output = spawn(command, Stdio::inherit())?.wait_with_output()?;
    let elapsed = begin.elapsed();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{} ended with {}\n{text}", show(command), output.status);
    Ok((elapsed, text))
}

/// Starts `command` with its output in a pipe.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(command: &[OsString], stderr: Stdio) -> anyhow::Result<Child> {
    let (program, arguments) = command.split_first().context("empty command")?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start {}", show(command)))
}

/// A command of words and paths.
pub fn command<const N: usize>(words: [&dyn AsRef<std::ffi::OsStr>; N]) -> Vec<OsString> {
    words.iter().map(|word| (*word).as_ref().to_owned()).collect()
}

/// As a person would type it.
pub fn show(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The program's path if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Ends a process that was started here, and waits for it.
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
