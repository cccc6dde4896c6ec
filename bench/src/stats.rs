//! Medians, and ratios pair by pair: what a noisy machine leaves comparable.

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let lower = sorted.len().checked_sub(1).and_then(|last| sorted.get(last / 2)).copied().unwrap_or(0.0);
    f64::midpoint(lower, upper)
}

/// The median of `a[i] / b[i]`, the values of one round each.
pub fn ratio(a: &[f64], b: &[f64]) -> f64 {
    median(&a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>())
}

/// Median and the range around it, as a cell of a table.
pub fn spread(values: &[f64], unit: &str) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    format!("{} {unit} ({} to {})", short(median(values)), short(low), short(high))
}

/// Three significant digits.
pub fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_middle_ones() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_taken_pair_by_pair() {
        // The machine was three times slower in the second round, for both.
        assert_eq!(ratio(&[2.0, 6.0, 2.0], &[1.0, 3.0, 1.0]), 2.0);
    }
}
