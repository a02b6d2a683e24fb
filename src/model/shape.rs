//! A made-up machine in a line of text: `2 packages x 2 numa x 2 llc x 4 cores x 2 threads`.
//!
//! Each part says how many of the next smaller thing one of the larger has. Parts that are left out count one; their order is always
//! from the largest to the smallest, because nothing else would nest. CPUs are numbered as Linux does on x86: first one thread of every
//! core, then the second ones.

use super::cpuset::{CPU_MAX, CpuSet};
use super::topology::Topology;
use std::fmt;
use std::str::FromStr;

/// The parts from the largest to the smallest, by the names they may have.
const PARTS: [&[&str]; 5] = [
    &["packages", "package"],
    &["numa", "nodes", "node"],
    &["llc", "llcs"],
    &["cores", "core"],
    &["threads", "thread"],
];

/// How many of each part the next larger one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub packages: u32,
    pub nodes: u32,
    pub llcs: u32,
    pub cores: u32,
    pub threads: u32,
}

/// Why a text describes no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShape {
    #[error("`{part}` is not like `2 packages`, `2 numa`, `2 llc`, `4 cores` or `2 threads`, joined by ` x `")]
    Part { part: String },
    #[error("`{part}` comes too late: packages, numa, llc, cores, threads is the order, each once")]
    Order { part: String },
    #[error("that are {cpus} CPUs, at most {} can be told apart", CPU_MAX + 1)]
    TooLarge { cpus: u64 },
}

impl FromStr for Shape {
    type Err = InvalidShape;

    fn from_str(text: &str) -> Result<Shape, InvalidShape> {
        let mut counts = [1; PARTS.len()];
        let mut next = 0;
        for part in text.split('x').map(str::trim) {
            let invalid = || InvalidShape::Part { part: part.to_owned() };
            let (count, name) = part.split_once(char::is_whitespace).ok_or_else(invalid)?;
            let count: u32 = count.parse().ok().filter(|count| *count > 0).ok_or_else(invalid)?;
            let position = PARTS.iter().position(|names| names.contains(&name.trim())).ok_or_else(invalid)?;
            if position < next {
                return Err(InvalidShape::Order { part: part.to_owned() });
            }
            counts[position] = count;
            next = position + 1;
        }
        let cpus = counts.iter().fold(1u64, |cpus, count| cpus.saturating_mul(u64::from(*count)));
        if cpus > u64::from(CPU_MAX) + 1 {
            return Err(InvalidShape::TooLarge { cpus });
        }
        let [packages, nodes, llcs, cores, threads] = counts;
        Ok(Shape { packages, nodes, llcs, cores, threads })
    }
}

impl Shape {
    /// The machine of this shape, all of it online and usable.
    pub fn topology(self) -> Topology {
        let Shape { packages, nodes, llcs, cores, threads } = self;
        let total = packages * nodes * llcs * cores;
        // Consecutive cores, and with each its other threads.
        let set = |first: u32, count: u32| -> CpuSet {
            (0..threads).flat_map(|thread| (first..first + count).map(move |core| thread * total + core)).collect()
        };
        let sets = |size: u32| -> Vec<CpuSet> { (0..total / size).map(|index| set(index * size, size)).collect() };
        let online = set(0, total);
        Topology {
            packages: sets(nodes * llcs * cores),
            nodes: (0..).zip(sets(llcs * cores)).collect(),
            llcs: sets(cores),
            cores: sets(1),
            usable: online.clone(),
            online,
            ..Topology::default()
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { packages, nodes, llcs, cores, threads } = self;
        write!(f, "{packages} packages x {nodes} numa x {llcs} llc x {cores} cores x {threads} threads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topology::tests::two_sockets;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<Shape>().unwrap_err().to_string()
    }

    #[test]
    fn a_line_of_text_makes_a_machine() {
        let shape: Shape = "2 packages x 2 llc x 2 cores x 2 threads".parse().unwrap();
        assert_eq!(shape.topology(), two_sockets());
        assert_eq!(shape.to_string(), "2 packages x 1 numa x 2 llc x 2 cores x 2 threads");
        assert_eq!("4 cores".parse::<Shape>().unwrap().topology().online.to_string(), "0-3");
    }

    #[test]
    fn what_is_no_shape_says_why() {
        insta::assert_snapshot!(error("2 sockets"), @"`2 sockets` is not like `2 packages`, `2 numa`, `2 llc`, `4 cores` or `2 threads`, joined by ` x `");
        insta::assert_snapshot!(error("0 cores"), @"`0 cores` is not like `2 packages`, `2 numa`, `2 llc`, `4 cores` or `2 threads`, joined by ` x `");
        insta::assert_snapshot!(error("4 cores x 2 packages"), @"`2 packages` comes too late: packages, numa, llc, cores, threads is the order, each once");
        insta::assert_snapshot!(error("9999 packages x 9999 cores"), @"that are 99980001 CPUs, at most 16384 can be told apart");
    }

    proptest! {
        #[test]
        fn every_level_has_each_cpu_once(packages in 1u32..4, nodes in 1u32..4, llcs in 1u32..4, cores in 1u32..5, threads in 1u32..4) {
            let shape = Shape { packages, nodes, llcs, cores, threads };
            prop_assert_eq!(shape.to_string().parse(), Ok(shape));
            let Topology { packages, nodes, llcs, cores, online, .. } = shape.topology();
            for level in [packages, nodes.into_values().collect(), llcs, cores] {
                prop_assert_eq!(level.iter().map(CpuSet::len).sum::<usize>(), online.len());
                prop_assert_eq!(level.iter().fold(CpuSet::new(), |all, set| all.union(set)), online.clone());
            }
        }
    }
}
