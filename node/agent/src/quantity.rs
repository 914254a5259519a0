//! Kubernetes quantities (`100m`, `64Mi`) as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const SUFFIXES: &[(&str, f64)] = &[
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

fn number(quantity: &Quantity) -> Option<f64> {
    let text = quantity.0.trim();
    // `1e3` and `1E3` are exponents and `1E` is a suffix, so a plain number is tried first.
    if let Ok(value) = text.parse::<f64>() {
        return value.is_finite().then_some(value);
    }
    let (suffix, scale) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    let value: f64 = text.strip_suffix(suffix)?.parse().ok()?;
    value.is_finite().then_some(value * scale)
}

#[allow(clippy::cast_possible_truncation, reason = "a float to integer cast saturates, which is what is wanted")]
fn rounded_up(value: f64) -> i64 {
    // Scaling by a decimal suffix leaves an error in the last digits that must not round up to the next unit.
    let nearest = value.round();
    if (value - nearest).abs() < 1e-6 { nearest as i64 } else { value.ceil() as i64 }
}

/// In whole units, rounded up as Kubernetes does; `None` for what is no quantity.
pub(crate) fn units(quantity: &Quantity) -> Option<i64> {
    number(quantity).map(rounded_up)
}

/// In thousandths, rounded up: millicores of a CPU quantity.
pub(crate) fn thousandths(quantity: &Quantity) -> Option<i64> {
    number(quantity).map(|value| rounded_up(value * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let units_of = |text: &str| units(&Quantity(text.to_owned()));
        let cases = [
            ("64Mi", 67_108_864),
            ("1", 1),
            ("1500m", 2),
            ("1e3", 1000),
            ("2G", 2_000_000_000),
            ("1E", 10_i64.pow(18)),
        ];
        for (text, wanted) in cases {
            assert_eq!(units_of(text), Some(wanted), "{text}");
        }
        assert_eq!(units_of("lots"), None);
        let milli = |text: &str| thousandths(&Quantity(text.to_owned()));
        for (text, wanted) in [("100m", 100), ("0.1", 100), ("2", 2000), ("1.0005", 1001)] {
            assert_eq!(milli(text), Some(wanted), "{text}");
        }
    }
}
