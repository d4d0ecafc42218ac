//! What is made of samples.

/// The sample that this part (0 to 1) of all does not exceed.
pub(crate) fn quantile(samples: &mut [f64], part: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index below the length"
    )]
    let index = ((samples.len() as f64 * part).ceil() as usize).saturating_sub(1);
    samples.get(index).copied().unwrap_or(f64::NAN)
}

/// The one in the middle.
pub(super) fn median(samples: &mut [f64]) -> f64 {
    quantile(samples, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_sample() {
        let check = |part: f64, expect: f64| {
            let mut samples = [5.0, 1.0, 3.0, 2.0, 4.0];
            assert!((quantile(&mut samples, part) - expect).abs() < f64::EPSILON);
        };
        check(0.0, 1.0);
        check(0.5, 3.0);
        check(0.8, 4.0);
        check(0.81, 5.0);
        check(1.0, 5.0);
    }
}
