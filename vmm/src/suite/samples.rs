//! What a guest's memory looked like while it ran: samples taken from outside, many times a second, without stopping it.
//!
//! A series has a bounded length: when it is full, every second sample goes and the rest are taken half as often. Looking takes
//! no more than about a tenth of one host CPU, however large the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memvisor_inspect::views::Sample;
use memvisor_inspect::{Guest, MemorySource};
use serde::{Deserialize, Serialize};

/// Samples of a series at most; even.
const SAMPLES_MAX: usize = 1000;
/// Shortest time from one sample to the next.
const EVERY: Duration = Duration::from_millis(20);
/// The part of one CPU that looking may take: one in so many.
const SHARE: u32 = 10;
/// How often a guest that cannot be looked at yet is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// A sample and its time in milliseconds since the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedSample {
    /// Milliseconds.
    pub ms: u64,
    /// What was seen.
    #[serde(flatten)]
    pub sample: Sample,
}

/// Samples of one run, ascending by time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Series(Vec<TimedSample>);

impl Series {
    /// The samples.
    pub fn samples(&self) -> &[TimedSample] {
        &self.0
    }

    /// Whether nothing was seen.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A series while it grows.
#[derive(Debug)]
struct Growing {
    series: Series,
    every: Duration,
}

impl Growing {
    const fn new() -> Growing {
        Growing { series: Series(Vec::new()), every: EVERY }
    }

    fn push(&mut self, time: Duration, sample: Sample) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.series.0.push(TimedSample { ms, sample });
        if self.series.0.len() >= SAMPLES_MAX {
            let mut keep = false;
            self.series.0.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
    }
}

/// A thread that looks at a guest until it is told to end.
#[derive(Debug)]
pub struct Recorder {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Series>,
}

impl Recorder {
    /// Looks at the guest in that memory, once `root` finds its root descriptor there.
    pub fn start<S: MemorySource + Send + 'static>(memory: S, root: fn(&S) -> Option<u64>) -> Recorder {
        let mut memory = Some(memory);
        Recorder::when(move || {
            let root_gpa = root(memory.as_ref()?)?;
            Some((memory.take()?, root_gpa))
        })
    }

    /// Looks at the guest that `find` finds: its memory and the address of its root descriptor. `find` is asked again and again until it
    /// answers.
    pub fn when<S, F>(mut find: F) -> Recorder
    where
        S: MemorySource,
        F: FnMut() -> Option<(S, u64)> + Send + 'static,
    {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut growing = Growing::new();
            let source = loop {
                if told.load(Ordering::Relaxed) {
                    return growing.series;
                }
                let start = Instant::now();
                match find() {
                    Some(source) => break source,
                    None => std::thread::sleep(RETRY.max(start.elapsed() * (SHARE - 1))),
                }
            };
            let begin = Instant::now();
            while !told.load(Ordering::Relaxed) {
                let start = Instant::now();
                // A guest that boots, or ends, cannot be read at some moments.
                if let Ok(guest) = Guest::attach(&source.0, source.1)
                    && let Ok(sample) = Sample::new(&guest)
                {
                    growing.push(start - begin, sample);
                }
                std::thread::sleep(growing.every.max(start.elapsed() * (SHARE - 1)));
            }
            growing.series
        });
        Recorder { ends, thread }
    }

    /// Ends looking; what was seen.
    pub fn end(self) -> Series {
        self.ends.store(true, Ordering::Relaxed);
        // A reader that panicked has nothing to show, and the case has its own verdict.
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memvisor_inspect::views::MemoryKind;

    fn sample(free: u64) -> Sample {
        let mut pages = [0; MemoryKind::ALL.len()];
        pages[MemoryKind::Free as usize] = free;
        Sample { pages, events: vec![free], ..Sample::default() }
    }

    #[test]
    fn a_long_series_gets_coarser_and_keeps_its_begin() {
        let mut growing = Growing::new();
        for ms in 0..5000 {
            growing.push(Duration::from_millis(ms), sample(ms));
        }
        let samples = growing.series.samples();
        assert!((SAMPLES_MAX / 2..SAMPLES_MAX).contains(&samples.len()), "{}", samples.len());
        assert_eq!(samples[0].ms, 0);
        assert!(samples.windows(2).all(|pair| pair[0].ms < pair[1].ms));
        assert!(growing.every > EVERY);
    }

    #[test]
    fn a_series_reads_back_from_its_json() {
        let mut growing = Growing::new();
        growing.push(Duration::from_millis(7), sample(3));
        let text = serde_json::to_string(&growing.series).unwrap();
        assert_eq!(serde_json::from_str::<Series>(&text).unwrap(), growing.series);
    }

    #[test]
    fn a_guest_that_is_never_found_has_an_empty_series() {
        let recorder = Recorder::when(|| None::<(memvisor_inspect::SparseMemory, u64)>);
        assert!(recorder.end().is_empty());
    }
}
