//! Resource quantities as whole numbers: `500m` CPU is 500 milli-CPU, `1Ki` memory is 1,024 bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity times 1,000, rounded up. What is no quantity counts as nothing: the API server lets none in.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 3).unwrap_or(0)
}

/// The quantity, rounded up.
pub(crate) fn value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 0).unwrap_or(0)
}

/// `text` times ten to the power of `exponent`, rounded up, and clamped to what fits.
fn scaled(text: &str, exponent: i32) -> Option<i64> {
    let (text, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (factor, power) = suffix_of(suffix)?;
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let power = power + exponent - i32::try_from(fraction.len()).ok()?;
    let magnitude = mantissa.checked_mul(factor).unwrap_or(i128::MAX);
    let signed = if negative { -magnitude } else { magnitude };
    Some(clamp(shift(signed, power)))
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The binary factor and the decimal power of a suffix.
fn suffix_of(suffix: &str) -> Option<(i128, i32)> {
    let binary = |steps: u32| Some((1_i128 << (10 * steps), 0));
    match suffix {
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "" => Some((1, 0)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E'])?;
            digits.parse().ok().map(|power| (1, power))
        }
    }
}

/// `value` times ten to the power of `power`; away from zero where it does not divide.
fn shift(value: i128, power: i32) -> i128 {
    let factor = 10_i128.checked_pow(power.unsigned_abs());
    match (factor, power < 0) {
        (Some(factor), false) => value.checked_mul(factor).unwrap_or(if value < 0 { i128::MIN } else { i128::MAX }),
        (Some(factor), true) => value / factor + (value % factor).signum(),
        (None, false) => value.signum() * i128::MAX,
        (None, true) => value.signum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_notation() {
        let cases = [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("500m", 500, 1),
            ("1.5", 1500, 2),
            (".5", 500, 1),
            ("100u", 1, 1),
            ("2k", 2_000_000, 2000),
            ("1Ki", 1_024_000, 1024),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("1e3", 1_000_000, 1000),
            ("2E-1", 200, 1),
            ("3E", i64::MAX, 3_000_000_000_000_000_000),
            ("-5m", -5, -1),
            ("99999999999999999999", i64::MAX, i64::MAX),
        ];
        for (text, in_milli, whole) in cases {
            let quantity = Quantity(text.to_owned());
            assert_eq!((milli(&quantity), value(&quantity)), (in_milli, whole), "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "--1"] {
            assert_eq!(scaled(bad, 0), None, "{bad}");
        }
    }
}
