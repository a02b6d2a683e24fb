//! Amounts with a unit, and their notation: CPU in thousandths, memory in bytes, durations.
//!
//! Memory and CPU follow the Kubernetes quantity notation (`500m`, `512M` = 512,000,000, `1.5Gi`); durations are `250ms`, `10s`, `5m`,
//! `2h`, `1d`. Whatever has no exact value (a third of a byte, more than the type holds) is an error, never rounded.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Thousandths of one CPU's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A bound that may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit<T> {
    /// No bound; the kernel writes it `max`.
    #[default]
    Max,
    /// At most this.
    At(T),
}

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmount {
    #[error("is negative")]
    Negative,
    #[error("is not a number")]
    NotANumber,
    #[error("has the unknown unit `{unit}`, expected {expected}")]
    Unit { unit: String, expected: &'static str },
    #[error("has no unit, expected {expected}")]
    NoUnit { expected: &'static str },
    #[error("is finer than {smallest}")]
    TooFine { smallest: &'static str },
    #[error("is too large, expected at most {largest}")]
    TooLarge { largest: &'static str },
}

impl<T> Limit<T> {
    pub fn at(self) -> Option<T> {
        match self {
            Limit::Max => None,
            Limit::At(value) => Some(value),
        }
    }

    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Limit<U> {
        match self {
            Limit::Max => Limit::Max,
            Limit::At(value) => Limit::At(change(value)),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Max => f.pad("max"),
            Limit::At(value) => value.fmt(f),
        }
    }
}

impl MilliCpu {
    /// How many whole CPUs this needs.
    pub fn cpus_ceil(self) -> usize {
        self.0.div_ceil(1000) as usize
    }
}

impl FromStr for MilliCpu {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<MilliCpu, InvalidAmount> {
        const LARGEST: InvalidAmount = InvalidAmount::TooLarge { largest: "4294967 CPUs" };
        let (number, unit) = split_unit(text)?;
        let scale = match unit {
            "" => 1000,
            "m" => 1,
            _ => return Err(InvalidAmount::Unit { unit: unit.to_owned(), expected: "none or `m`" }),
        };
        let value = scaled(number, scale, LARGEST, "a thousandth of a CPU")?;
        u32::try_from(value).map(MilliCpu).map_err(|_| LARGEST)
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MilliCpu(milli) = *self;
        f.pad(&if milli.is_multiple_of(1000) { format!("{}", milli / 1000) } else { format!("{milli}m") })
    }
}

/// Units of memory, largest first within each system.
const MEMORY_UNITS: [(&str, u64); 10] = [
    ("Pi", 1 << 50),
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("P", 1_000_000_000_000_000),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("K", 1_000),
];

impl FromStr for Bytes {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Bytes, InvalidAmount> {
        let (number, unit) = split_unit(text)?;
        // The quantity notation writes 10^3 as a small k; people write both.
        let scale =
            if unit == "k" { Some(1000) } else { MEMORY_UNITS.iter().find(|(name, _)| *name == unit).map(|u| u.1) };
        let scale = match (unit, scale) {
            ("", _) => 1,
            (_, Some(scale)) => scale,
            _ => {
                let expected = "none, K, M, G, T, P, Ki, Mi, Gi, Ti or Pi";
                return Err(InvalidAmount::Unit { unit: unit.to_owned(), expected });
            }
        };
        scaled(number, scale, InvalidAmount::TooLarge { largest: "16384 Pi" }, "a byte").map(Bytes)
    }
}

impl fmt::Display for Bytes {
    /// The shortest exact notation: `512M`, `16Gi`, `4097`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bytes(bytes) = *self;
        let exact = MEMORY_UNITS.iter().filter(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
        match exact.map(|(unit, scale)| (bytes / scale, unit)).min() {
            Some((number, unit)) => f.pad(&format!("{number}{unit}")),
            None => f.pad(&bytes.to_string()),
        }
    }
}

impl Bytes {
    /// For people: at most one decimal, binary units, `1.5Gi`.
    pub fn rounded(self) -> String {
        let Bytes(bytes) = self;
        for (unit, scale) in &MEMORY_UNITS[..5] {
            if bytes >= *scale {
                let tenths = u128::from(bytes) * 10 / u128::from(*scale);
                return match tenths % 10 {
                    0 => format!("{}{unit}", tenths / 10),
                    tenth => format!("{}.{tenth}{unit}", tenths / 10),
                };
            }
        }
        format!("{bytes}")
    }
}

/// Reads a duration: a whole number and a unit, `10s`.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidAmount> {
    const UNITS: &str = "ms, s, m, h or d";
    const LARGEST: InvalidAmount = InvalidAmount::TooLarge { largest: "3650d" };
    let (number, unit) = split_unit(text)?;
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(InvalidAmount::NoUnit { expected: UNITS }),
        _ => return Err(InvalidAmount::Unit { unit: unit.to_owned(), expected: UNITS }),
    };
    let millis = scaled(number, millis_per_unit, LARGEST, "a millisecond")?;
    if millis > 3650 * 86_400_000 { Err(LARGEST) } else { Ok(Duration::from_millis(millis)) }
}

/// Writes a duration the way [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (scale, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis > 0 && millis.is_multiple_of(scale) {
            return format!("{}{unit}", millis / scale);
        }
    }
    format!("{millis}ms")
}

/// The number and the unit behind it. A number is digits with at most one point between digits; an exponent is not understood.
fn split_unit(text: &str) -> Result<(&str, &str), InvalidAmount> {
    if text.starts_with('-') {
        return Err(InvalidAmount::Negative);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let point = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if digits(point.0) && digits(point.1) { Ok((number, unit)) } else { Err(InvalidAmount::NotANumber) }
}

/// `number` times `scale`, exactly.
fn scaled(number: &str, scale: u64, largest: InvalidAmount, smallest: &'static str) -> Result<u64, InvalidAmount> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    // Digits behind the point widen the scale; 18 of them are more than any unit can use, and keep 10^n inside a u128.
    let Ok(places @ 0..=18) = u32::try_from(fraction.len()) else {
        return Err(InvalidAmount::TooFine { smallest });
    };
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| largest.clone())?;
    let product = digits.checked_mul(u128::from(scale)).ok_or_else(|| largest.clone())?;
    let divisor = 10u128.pow(places);
    if !product.is_multiple_of(divisor) {
        return Err(InvalidAmount::TooFine { smallest });
    }
    u64::try_from(product / divisor).map_err(|_| largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check<T: FromStr<Err = InvalidAmount> + fmt::Debug>(text: &str) -> String {
        match text.parse::<T>() {
            Ok(value) => format!("{value:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn memory_is_written_as_kubernetes_writes_quantities() {
        assert_eq!(check::<Bytes>("512M"), "Bytes(512000000)");
        assert_eq!(check::<Bytes>("512Mi"), "Bytes(536870912)");
        assert_eq!(check::<Bytes>("1.5Gi"), "Bytes(1610612736)");
        assert_eq!(check::<Bytes>("1k"), "Bytes(1000)");
        assert_eq!(check::<Bytes>("4096"), "Bytes(4096)");
        assert_eq!(check::<Bytes>("18446744073709551615"), "Bytes(18446744073709551615)");
    }

    #[test]
    fn cpu_is_whole_or_in_thousandths() {
        assert_eq!(check::<MilliCpu>("2"), "MilliCpu(2000)");
        assert_eq!(check::<MilliCpu>("0.5"), "MilliCpu(500)");
        assert_eq!(check::<MilliCpu>("1.250"), "MilliCpu(1250)");
        assert_eq!(check::<MilliCpu>("500m"), "MilliCpu(500)");
    }

    #[test]
    fn what_is_no_amount_says_why() {
        assert_eq!(check::<Bytes>("-1"), "is negative");
        assert_eq!(check::<Bytes>("lots"), "is not a number");
        assert_eq!(check::<Bytes>("1..5M"), "is not a number");
        assert_eq!(check::<Bytes>(""), "is not a number");
        assert_eq!(check::<Bytes>("1.3"), "is finer than a byte");
        assert_eq!(
            check::<Bytes>("1e9"),
            "has the unknown unit `e9`, expected none, K, M, G, T, P, Ki, Mi, Gi, Ti or Pi"
        );
        assert_eq!(check::<Bytes>("18446744073709551616"), "is too large, expected at most 16384 Pi");
        assert_eq!(
            check::<Bytes>("999999999999999999999999999999999999999999M"),
            "is too large, expected at most 16384 Pi"
        );
        assert_eq!(check::<MilliCpu>("0.0001"), "is finer than a thousandth of a CPU");
        assert_eq!(check::<MilliCpu>("5000000"), "is too large, expected at most 4294967 CPUs");
        assert_eq!(check::<MilliCpu>("2Gi"), "has the unknown unit `Gi`, expected none or `m`");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("10").unwrap_err().to_string(), "has no unit, expected ms, s, m, h or d");
        assert_eq!(parse_duration("99999d").unwrap_err().to_string(), "is too large, expected at most 3650d");
    }

    #[test]
    fn people_read_memory_in_round_numbers() {
        assert_eq!(Bytes(1_610_612_736).rounded(), "1.5Gi");
        assert_eq!(Bytes(512_000_000).rounded(), "488.2Mi");
        assert_eq!(Bytes(12).rounded(), "12");
    }

    proptest! {
        #[test]
        fn amounts_read_back_as_they_were_written(bytes in any::<u64>(), milli in any::<u32>(), millis in 0u64..86_400_000) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
            prop_assert_eq!(MilliCpu(milli).to_string().parse(), Ok(MilliCpu(milli)));
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<MilliCpu>();
            let _ = parse_duration(&text);
        }
    }
}
