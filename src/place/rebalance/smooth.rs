//! Exponentially weighted means over irregular ticks, in integers.

use serde::{Deserialize, Serialize};

/// Bits behind the binary point: a change of one thousandth of a CPU still arrives after an hour of half-lives.
const POINT: u32 = 12;

/// 2^(-i/16) in 65536ths, for i of 0..=16. Between them a straight line is off by less than 0.03 %.
const POWERS: [u64; 17] = [
    65536, 62757, 60097, 57549, 55109, 52773, 50535, 48393, 46341, 44376, 42495, 40693, 38968, 37316, 35734, 34219,
    32768,
];

/// A mean that forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Smooth(u64);

/// How much of the old value is kept over a tick, in 65536ths. Worked out once a tick, for all values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept(u64);

impl Kept {
    /// What is kept over `elapsed_ms`, a half after each `half_life_ms`.
    pub fn over(elapsed_ms: u64, half_life_ms: u64) -> Kept {
        let half_life_ms = half_life_ms.max(1);
        let halvings = elapsed_ms / half_life_ms;
        if halvings >= 16 {
            return Kept(0);
        }
        // Sixteenths of a half-life, with 12 more bits between two of them.
        let fine = elapsed_ms % half_life_ms * 16 * 4096 / half_life_ms;
        let (index, between) = (usize::try_from(fine / 4096).unwrap_or(15), fine % 4096);
        let (upper, lower) = (POWERS[index], POWERS[index + 1]);
        Kept((upper - (upper - lower) * between / 4096) >> halvings)
    }
}

impl Smooth {
    pub fn new(value: u64) -> Smooth {
        Smooth(value << POINT)
    }

    pub fn add(&mut self, value: u64, Kept(kept): Kept) {
        self.0 = (self.0 * kept + (value << POINT) * (65536 - kept)) >> 16;
    }

    /// Rounded to the nearest.
    pub fn get(self) -> u64 {
        (self.0 + (1 << (POINT - 1))) >> POINT
    }
}

/// Adds to a mean that may still have to begin.
pub fn add(mean: &mut Option<Smooth>, value: u64, kept: Kept) {
    match mean {
        Some(mean) => mean.add(value, kept),
        None => *mean = Some(Smooth::new(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_change_has_come_after_a_half_life_however_many_ticks_it_took() {
        for ticks in [1, 2, 6, 30] {
            let mut value = Smooth::new(1000);
            (0..ticks).for_each(|_| value.add(3000, Kept::over(30_000 / ticks, 30_000)));
            assert!(value.get().abs_diff(2000) <= 10, "{ticks} ticks: {}", value.get());
        }
    }

    #[test]
    fn what_is_steady_stays_and_a_long_gap_forgets() {
        let mut value = Smooth::new(777);
        (0..10_000).for_each(|_| value.add(777, Kept::over(5_000, 30_000)));
        assert!(value.get().abs_diff(777) <= 1, "{}", value.get());
        value.add(10, Kept::over(3_600_000, 30_000));
        assert_eq!(value.get(), 10);
    }
}
