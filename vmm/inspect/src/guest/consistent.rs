//! Reading what a running guest may be changing.

use serde::Serialize;

/// What came of reading something that may change meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading<T> {
    /// The last value read.
    pub value: T,
    /// Reads made, at least 1.
    pub attempts: u32,
    /// Whether the last read was consistent in itself. If not, the guest changed under every read,
    /// or what it holds is wrong: pause it and read again to know.
    pub consistent: bool,
}

/// Reads until `is_consistent` accepts the value, at most `attempts` times (at least once).
///
/// # Errors
/// Those of the last `read`.
pub fn consistent<T, E>(
    attempts: u32,
    mut read: impl FnMut() -> Result<T, E>,
    is_consistent: impl Fn(&T) -> bool,
) -> Result<Reading<T>, E> {
    let mut attempt = 1;
    loop {
        let result = read();
        let last = attempt >= attempts;
        match result {
            Ok(value) if is_consistent(&value) => {
                return Ok(Reading { value, attempts: attempt, consistent: true });
            }
            Ok(value) if last => return Ok(Reading { value, attempts: attempt, consistent: false }),
            Err(error) if last => return Err(error),
            Ok(_) | Err(_) => attempt += 1,
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_read_is_repeated_and_counted() {
        let mut values = [1, 2, 3].into_iter();
        let read = || values.next().ok_or("ran out");
        let reading = consistent(5, read, |value| *value == 3).unwrap();
        assert_eq!(reading, Reading { value: 3, attempts: 3, consistent: true });
    }

    #[test]
    fn a_value_that_never_settles_is_reported_as_such() {
        let reading = consistent(4, || Ok::<_, ()>(7), |_| false).unwrap();
        assert_eq!(reading, Reading { value: 7, attempts: 4, consistent: false });
    }
}
