//! Kubernetes quantities: `100m`, `1.5Gi`, `2e3`.
//!
//! A quantity is held in whole nano-units, which is the finest that Kubernetes keeps; what is finer is rounded up.

use std::{cmp::Ordering, fmt, str::FromStr};

const NANOS: i128 = 1_000_000_000;
/// Kubernetes caps every quantity at what an int64 holds.
const LIMIT: i128 = i64::MAX as i128 * NANOS;
/// Fraction digits that are read; further ones only round up.
const FRACTION_DIGITS: usize = 18;

const DECIMAL: [(&str, i32); 9] =
    [("n", -9), ("u", -6), ("m", -3), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity was written, which decides how it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Decimal,
    Binary,
    Exponent,
}

/// An amount of a resource. Equality and order are those of the amount; the way it was written doesn't count.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    style: Style,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, style: Style::Decimal };

    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let unit = Unit::parse(suffix)?;
        let size = unit.whole(whole).saturating_add(unit.fraction(fraction)).min(LIMIT);
        Ok(Quantity { nanos: if negative { -size } else { size }, style: unit.style })
    }

    pub const fn from_i64(amount: i64) -> Quantity {
        Quantity { nanos: amount as i128 * NANOS, style: Style::Decimal }
    }

    /// The amount in whole units, rounded up.
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, NANOS))
    }

    /// The amount in thousandths, rounded up: millicores of a CPU quantity.
    pub fn milli_value(&self) -> i64 {
        saturate(div_up(self.nanos, NANOS / 1000))
    }

    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    #[must_use]
    pub fn plus(self, other: Quantity) -> Quantity {
        let style = if self.nanos == 0 { other.style } else { self.style };
        Quantity { nanos: (self.nanos + other.nanos).clamp(-LIMIT, LIMIT), style }
    }

    #[must_use]
    pub fn minus(self, other: Quantity) -> Quantity {
        Quantity { nanos: (self.nanos - other.nanos).clamp(-LIMIT, LIMIT), style: self.style }
    }

    /// How often the other amount is in this one; `None` where the other is nothing.
    pub fn ratio(self, other: Quantity) -> Option<Quantity> {
        let nanos = self.nanos.saturating_mul(NANOS);
        (other.nanos != 0).then(|| Quantity { nanos: div_up(nanos, other.nanos), style: Style::Decimal })
    }

    /// With six decimals, as C and Go print a number by `%f`.
    pub fn to_decimal(self) -> String {
        let micros = (self.nanos.abs() + 500) / 1000;
        let sign = if self.nanos < 0 { "-" } else { "" };
        format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000)
    }
}

/// What one of a suffix is worth.
struct Unit {
    /// In nano-units, times `10^-shift` where even a nano-unit is too coarse.
    nanos: i128,
    shift: u32,
    style: Style,
}

impl Unit {
    fn parse(suffix: &str) -> Result<Unit, QuantityError> {
        if let Some(at) = BINARY.iter().position(|binary| *binary == suffix) {
            return Ok(Unit { nanos: NANOS << (10 * (at + 1)), shift: 0, style: Style::Binary });
        }
        if suffix.is_empty() {
            return Ok(Unit::power(0, Style::Decimal));
        }
        if let Some((_, exponent)) = DECIMAL.iter().find(|(decimal, _)| *decimal == suffix) {
            return Ok(Unit::power(*exponent, Style::Decimal));
        }
        if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
            let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            return Ok(Unit::power(exponent, Style::Exponent));
        }
        let in_alphabet = suffix.bytes().all(|byte| b"eEinumkKMGTP+-0123456789".contains(&byte));
        Err(if in_alphabet { QuantityError::Suffix } else { QuantityError::Format })
    }

    fn power(exponent: i32, style: Style) -> Unit {
        let exponent = exponent.saturating_add(9);
        let nanos =
            u32::try_from(exponent).map_or(1, |exponent| 10_i128.checked_pow(exponent).unwrap_or(LIMIT).min(LIMIT));
        Unit { nanos, shift: u32::try_from(-exponent.min(0)).unwrap_or_default(), style }
    }

    fn shifted(&self, nanos: i128) -> i128 {
        10_i128.checked_pow(self.shift).map_or_else(|| i128::from(nanos > 0), |divisor| div_up(nanos, divisor))
    }

    fn whole(&self, digits: &str) -> i128 {
        let number = digits.bytes().try_fold(0_i128, |number, digit| {
            number.checked_mul(10)?.checked_add(i128::from(digit - b'0')).filter(|number| *number <= LIMIT)
        });
        self.shifted(number.and_then(|number| number.checked_mul(self.nanos)).unwrap_or(LIMIT).min(LIMIT))
    }

    fn fraction(&self, digits: &str) -> i128 {
        let mut number = 0_i128;
        for at in 0..FRACTION_DIGITS {
            number = number * 10 + digits.as_bytes().get(at).map_or(0, |digit| i128::from(digit - b'0'));
        }
        // What is beyond is less than one in the last place; it rounds up, as all that is too fine does.
        if digits.len() > FRACTION_DIGITS && digits[FRACTION_DIGITS..].bytes().any(|digit| digit != b'0') {
            number += 1;
        }
        // Units of a whole or more are multiples of 10^9, so dividing early loses nothing.
        let nanos = if self.nanos >= NANOS {
            div_up(number.saturating_mul(self.nanos / NANOS), NANOS)
        } else {
            div_up(number * self.nanos, NANOS * NANOS)
        };
        self.shifted(nanos)
    }
}

/// Division that rounds up in size, for amounts of either sign.
fn div_up(number: i128, divisor: i128) -> i128 {
    let rest = i128::from(number % divisor != 0) * number.signum();
    number / divisor + rest
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(text)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return formatter.write_str("0");
        }
        let whole = self.nanos / NANOS;
        if self.style == Style::Binary && self.is_whole() && whole.abs() >= 1024 {
            let (mut number, mut power) = (whole, 0);
            while number % 1024 == 0 && power < BINARY.len() {
                number /= 1024;
                power += 1;
            }
            return write!(formatter, "{number}{}", if power == 0 { "" } else { BINARY[power - 1] });
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        let suffix = DECIMAL.iter().find(|(_, power)| *power == exponent).map_or("", |(suffix, _)| suffix);
        match self.style {
            Style::Exponent if exponent != 0 => write!(formatter, "{number}e{exponent}"),
            _ => write!(formatter, "{number}{suffix}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("10000", "10k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("2e3", "2e3"),
            ("2E3", "2e3"),
            ("1e0", "1"),
            ("1E", "1E"),
            ("128974848", "128974848"),
            ("129M", "129M"),
            ("123Mi", "123Mi"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.0000000001", "1n"),
            ("1e-12", "1e-9"),
            ("100n", "100n"),
            ("5u", "5u"),
            ("99999999999999999999999999E", "9223372036854775807"),
            ("0.3Gi", "322122547200m"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("x", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("--1", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1KI", QuantityError::Format),
            ("1K", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            (".", QuantityError::Format),
        ] {
            assert_eq!(Quantity::parse(text).map(|found| found.to_string()), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let parse = |text: &str| Quantity::parse(text).unwrap();
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1000m"), parse("1"));
        assert_eq!((parse("1500m").value(), parse("1500m").milli_value()), (2, 1500));
        assert_eq!(parse("64Mi").plus(parse("64Mi")).to_string(), "128Mi");
        assert_eq!(parse("1").minus(parse("1500m")).to_string(), "-500m");
        assert_eq!(parse("2").ratio(parse("750m")).unwrap().to_decimal(), "2.666667");
        assert!(parse("1Gi").ratio(parse("512Mi")).unwrap() == parse("2"));
        assert_eq!(parse("1").ratio(Quantity::ZERO), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn what_is_written_is_read_again(whole in 0_u64..1 << 62, fraction in 0_u32..1_000_000, suffix in "(|n|u|m|k|M|Ki|Mi|Gi|e3|e-3)") {
            let quantity = Quantity::parse(&format!("{whole}.{fraction:06}{suffix}")).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()).unwrap(), quantity);
        }
    }
}
