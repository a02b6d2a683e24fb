//! Loads that change: noise with memory, steps, days, flash crowds, and square waves made to catch a rebalancer that looks at its ticks.

use std::f64::consts::TAU;

/// A tick, in seconds.
pub const TICK_S: f64 = 5.0;

/// xorshift64*, by Vigna: reproducible, and good enough for loads.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        (0..8).for_each(|_| _ = random.next());
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 16) % end as u64).unwrap()
    }

    /// In (0, 1].
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
        let unit = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        unit
    }

    /// Box and Muller's.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (TAU * self.unit()).cos()
    }
}

/// What one workload asks for over time: its mean, times a shape.
#[derive(Clone, Debug)]
pub struct Load {
    /// In CPUs.
    pub mean: f64,
    shape: Shape,
    /// Noise on top of the shape: an AR(1) process of this deviation.
    noise: f64,
}

#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Noise alone.
    Steady,
    /// Times `factor` from some moment on.
    Step { at_s: f64, factor: f64 },
    /// A day that is over in `period_s`.
    Diurnal { period_s: f64, phase: f64 },
    /// Now and then `factor` times as much, then less by the minute.
    Crowd { next_s: f64, factor: f64 },
    /// On and off for so many ticks each.
    Square { ticks: f64, phase_s: f64 },
}

/// The AR(1) noise: deviation and time to forget.
const NOISE: f64 = 0.3;
const MEMORY_S: f64 = 120.0;

impl Load {
    pub fn new(mean: f64, shape: Shape) -> Load {
        Load { mean, shape, noise: 0.0 }
    }

    /// One of the mix: of ten five are steady, one steps, two have days, one draws crowds, one is a square wave.
    pub fn mixed(mean: f64, length_s: f64, random: &mut Random) -> Load {
        let shape = match random.below(10) {
            0..5 => Shape::Steady,
            5 => Shape::Step { at_s: random.unit() * length_s, factor: 0.3 + 2.2 * random.unit() },
            6..8 => Shape::Diurnal { period_s: 7200.0 + 7200.0 * random.unit(), phase: random.unit() },
            8 => Shape::Crowd { next_s: random.unit() * 5400.0, factor: 2.0 + 3.0 * random.unit() },
            _ => Load::square(random),
        };
        Load::new(mean, shape)
    }

    /// A square wave of half a tick, one or two.
    pub fn square(random: &mut Random) -> Shape {
        let ticks = [0.5, 1.0, 2.0][random.below(3)];
        Shape::Square { ticks, phase_s: random.unit() * 2.0 * TICK_S * ticks }
    }

    /// Mean demand in CPUs over the tick that begins at `at_s`.
    pub fn over_tick(&mut self, at_s: f64, random: &mut Random) -> f64 {
        let kept = (-TICK_S / MEMORY_S).exp();
        self.noise = kept.mul_add(self.noise, NOISE * (1.0 - kept * kept).sqrt() * random.normal());
        let factor = match &mut self.shape {
            Shape::Steady => 1.0,
            Shape::Step { at_s: at, factor } => {
                if at_s < *at {
                    1.0
                } else {
                    *factor
                }
            }
            Shape::Diurnal { period_s, phase } => 0.6_f64.mul_add((TAU * (at_s / *period_s + *phase)).sin(), 1.0),
            Shape::Crowd { next_s, factor } => {
                if at_s > *next_s + 900.0 {
                    *next_s = at_s + 1800.0 + random.unit() * 5400.0;
                }
                if at_s < *next_s { 1.0 } else { (*factor - 1.0).mul_add((-(at_s - *next_s) / 300.0).exp(), 1.0) }
            }
            Shape::Square { ticks, phase_s } => {
                let half = *ticks * TICK_S;
                // How much of the tick it is on, by the integral of the wave.
                let on_until = |s: f64| {
                    let waves = (s / (2.0 * half)).floor();
                    waves * half + (s - waves * 2.0 * half).min(half)
                };
                2.0 * (on_until(at_s + *phase_s + TICK_S) - on_until(at_s + *phase_s)) / TICK_S
            }
        };
        (self.mean * factor * (1.0 + self.noise)).max(0.0)
    }
}
