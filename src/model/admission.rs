//! How much of a machine may be promised: less than there is, where the system needs some, or more, where promises are rarely called in.

use super::units::Bytes;
use std::fmt;
use std::str::FromStr;

/// What admission makes of a machine's CPUs and memory. By default exactly what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Memory that is promised to nobody: the system's own, caches included that it cannot do without. CPUs are reserved by number
    /// instead (`--reserved-cpus`), and so are not among the usable ones.
    pub memory_reserved: Bytes,
    pub overcommit: Overcommit,
}

/// How often what there is may be promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overcommit {
    pub cpu: Ratio,
    pub memory: Ratio,
}

/// A factor in hundredths, so that sums stay integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u32);

/// The largest factor: beyond a hundred times a request says nothing any more, and 0 would admit nobody.
const RATIO_MAX: u32 = 100 * 100;

impl Default for Ratio {
    fn default() -> Ratio {
        Ratio(100)
    }
}

impl Ratio {
    /// What may be promised of an amount.
    pub fn of(self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * u128::from(self.0) / 100).unwrap_or(u64::MAX)
    }

    /// The least amount of which so much may be promised.
    pub fn needed_for(self, promised: u64) -> u64 {
        u64::try_from((u128::from(promised) * 100).div_ceil(u128::from(self.0))).unwrap_or(u64::MAX)
    }

    fn is_one(self) -> bool {
        self == Ratio::default()
    }
}

impl Admission {
    /// Memory that may be promised.
    pub fn memory(&self, there_is: Bytes) -> Bytes {
        Bytes(self.overcommit.memory.of(there_is.0.saturating_sub(self.memory_reserved.0)))
    }

    /// The same for people, with how it came about where it is not what there is: `14Gi (16Gi less 2Gi reserved)`.
    pub fn memory_told(&self, there_is: Bytes) -> String {
        let Admission { memory_reserved, overcommit: Overcommit { memory, .. } } = self;
        let all = self.memory(there_is).rounded();
        let reserved = if memory_reserved.0 == 0 { String::new() } else { format!(" less {memory_reserved} reserved") };
        match (reserved.is_empty(), memory.is_one()) {
            (true, true) => all,
            (_, true) => format!("{all} ({}{reserved})", there_is.rounded()),
            (_, false) => format!("{all} ({}{reserved}, times {memory})", there_is.rounded()),
        }
    }

    /// Thousandths of a CPU that may be promised of so many CPUs.
    pub fn cpu_milli(&self, cpus: usize) -> u64 {
        self.overcommit.cpu.of(1000 * cpus as u64)
    }

    /// The same for people: `2 CPUs`, `2 CPUs times 1.5`.
    pub fn cpus_told(&self, cpus: usize) -> String {
        let ratio = self.overcommit.cpu;
        let times = if ratio.is_one() { String::new() } else { format!(" times {ratio}") };
        if cpus == 1 { format!("1 CPU{times}") } else { format!("{cpus} CPUs{times}") }
    }
}

/// Why a text says no factors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOvercommit {
    #[error("`{0}` is not RESOURCE=FACTOR, as in cpu=2,memory=1.2")]
    Form(String),
    #[error("{0} cannot be overcommitted, only cpu and memory; GPUs and exclusive CPUs never are")]
    Resource(String),
    #[error("the factor `{0}` is not a number from 0.01 to 100 with at most two decimals")]
    Factor(String),
    #[error("{0} is given twice")]
    Twice(String),
}

impl FromStr for Overcommit {
    type Err = InvalidOvercommit;

    fn from_str(text: &str) -> Result<Overcommit, InvalidOvercommit> {
        let (mut cpu, mut memory) = (None, None);
        for part in text.split(',') {
            let (name, factor) = part.split_once('=').ok_or_else(|| InvalidOvercommit::Form(part.to_owned()))?;
            let slot = match name {
                "cpu" => &mut cpu,
                "memory" => &mut memory,
                _ => return Err(InvalidOvercommit::Resource(name.to_owned())),
            };
            if slot.replace(factor.parse()?).is_some() {
                return Err(InvalidOvercommit::Twice(name.to_owned()));
            }
        }
        Ok(Overcommit { cpu: cpu.unwrap_or_default(), memory: memory.unwrap_or_default() })
    }
}

impl FromStr for Ratio {
    type Err = InvalidOvercommit;

    fn from_str(text: &str) -> Result<Ratio, InvalidOvercommit> {
        let wrong = || InvalidOvercommit::Factor(text.to_owned());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let hundredths: u32 = format!("{decimals:0<2}").parse().map_err(|_| wrong())?;
        let ratio = whole.checked_mul(100).and_then(|all| all.checked_add(hundredths)).ok_or_else(wrong)?;
        if (1..=RATIO_MAX).contains(&ratio) { Ok(Ratio(ratio)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ratio(hundredths) = *self;
        match (hundredths / 100, hundredths % 100) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, rest) if rest.is_multiple_of(10) => write!(f, "{whole}.{}", rest / 10),
            (whole, rest) => write!(f, "{whole}.{rest:02}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_exactly_or_refused_by_name() {
        let told = |text: &str| match text.parse::<Overcommit>() {
            Ok(Overcommit { cpu, memory }) => format!("cpu {cpu}, memory {memory}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(told("cpu=2,memory=1.05"), "cpu 2, memory 1.05");
        assert_eq!(told("memory=0.5"), "cpu 1, memory 0.5");
        assert_eq!(told("cpu"), "`cpu` is not RESOURCE=FACTOR, as in cpu=2,memory=1.2");
        assert_eq!(
            told("gpu=2"),
            "gpu cannot be overcommitted, only cpu and memory; GPUs and exclusive CPUs never are"
        );
        assert_eq!(told("cpu=1,cpu=2"), "cpu is given twice");
        for bad in ["0", "0.001", "-1", "1.", ".5", "101", "1e3", "99999999999", ""] {
            let expected = format!("the factor `{bad}` is not a number from 0.01 to 100 with at most two decimals");
            assert_eq!(told(&format!("cpu={bad}")), expected);
        }
    }

    #[test]
    fn a_ratio_never_promises_more_than_it_says() {
        for text in ["0.01", "0.33", "1", "1.5", "3", "100"] {
            let ratio: Ratio = text.parse().unwrap();
            for amount in [0, 1, 2, 3, 7, 999, 1000, 1001, 123_457] {
                assert!(ratio.needed_for(ratio.of(amount)) <= amount, "{text} of {amount}");
                assert!(ratio.of(ratio.needed_for(amount)) >= amount, "{text} for {amount}");
            }
        }
    }
}
