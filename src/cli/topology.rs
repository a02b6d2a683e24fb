//! `containerctl topology`: the machine's CPUs as a tree, and who sits where.

use super::output::{Format, complain, print, print_value};
use super::{TopologyArgs, client};
use crate::host::topology::{allowed, read};
use crate::manifest::diagnostic::shown;
use crate::model::cpuset::CpuSet;
use crate::model::status::{ConditionKind, Status};
use crate::model::topology::{Domain, Level, Topology};
use anyhow::Context;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: &TopologyArgs) -> anyhow::Result<ExitCode> {
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    let topology = read(root, allowed(root).as_ref()).with_context(|| {
        format!("no machine below {}; help: it is the folder that holds its `sys` and `proc`", root.display())
    })?;
    match args.format.output {
        Format::Table => {
            let statuses = statuses(args);
            print(&(draw(&topology, &seated(&statuses)) + &alone(&statuses)))?;
        }
        format => print_value(&topology, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the controller has put on this machine; a saved one has nobody.
fn statuses(args: &TopologyArgs) -> Vec<Status> {
    if args.root.is_some() {
        return Vec::new();
    }
    client::talk(client::get::<Vec<Status>>(&args.client, "/v1/workloads")).unwrap_or_else(|error| {
        complain(&format!("who sits where is not shown: {error:#}"));
        Vec::new()
    })
}

fn seated(statuses: &[Status]) -> Vec<(String, CpuSet)> {
    let placed = statuses.iter().filter(|status| !status.cpus.is_empty());
    placed.map(|status| (status.name.to_string(), status.cpus.clone())).collect()
}

/// How exclusive the CPUs of those are that asked for that.
fn alone(statuses: &[Status]) -> String {
    let told = |status: &Status| {
        let found = status.condition(ConditionKind::Exclusive)?;
        Some(format!("exclusive to {}: {} ({})\n", status.name, shown(&found.message), found.reason))
    };
    statuses.iter().filter_map(told).collect()
}

/// The tree, each workload beside the smallest domain that has all of its CPUs. Cores are drawn one by one where somebody sits on one.
pub fn draw(topology: &Topology, seated: &[(String, CpuSet)]) -> String {
    let Topology { online, offline, usable, nodes, kinds, .. } = topology;
    let whole = Topology { usable: online.clone(), ..topology.clone() };
    let domains = whole.domains();
    let mut text = String::new();
    let machine = Domain { level: Level::Machine, cpus: online.clone() };
    Tree { topology, domains }.branch(&mut text, &machine, 0, seated);
    if usable != online {
        text.push_str(&format!("usable by workloads: {}\n", or_none(usable)));
    }
    if !offline.is_empty() {
        text.push_str(&format!("switched off: {offline}\n"));
    }
    for (number, _) in nodes.iter().filter(|(_, cpus)| cpus.is_empty()) {
        text.push_str(&format!("NUMA node {number} has no CPUs\n"));
    }
    for kind in kinds.iter().filter(|_| kinds.len() > 1) {
        text.push_str(&format!("kind {} of {}: {}\n", kind.efficiency + 1, kinds.len(), kind.cpus));
    }
    text
}

/// What is drawn.
struct Tree<'a> {
    topology: &'a Topology,
    domains: Vec<Domain>,
}

impl Tree<'_> {
    fn branch(&self, text: &mut String, here: &Domain, depth: usize, seated: &[(String, CpuSet)]) {
        let inside: Vec<&Domain> = self
            .domains
            .iter()
            .filter(|domain| domain.cpus != here.cpus && domain.cpus.is_subset(&here.cpus))
            .collect();
        // Those that are in none of the others are the next step down.
        let is_next = |domain: &&&Domain| {
            !inside.iter().any(|other| other.cpus != domain.cpus && domain.cpus.is_subset(&other.cpus))
        };
        let mut next: Vec<&Domain> = inside.iter().filter(is_next).copied().collect();
        next.sort_by_key(|domain| domain.cpus.iter().next());
        let (below, own): (Vec<_>, Vec<_>) = seated
            .iter()
            .filter(|(_, cpus)| cpus.is_subset(&here.cpus))
            .cloned()
            .partition(|(_, cpus)| next.iter().any(|domain| cpus.is_subset(&domain.cpus)));
        let who: Vec<String> = own
            .iter()
            .map(|(name, cpus)| if *cpus == here.cpus { name.clone() } else { format!("{name} ({cpus})") })
            .collect();
        let indent = "  ".repeat(depth);
        text.push_str(format!("{indent}{} {}  {}", self.what(here), here.cpus, who.join(", ")).trim_end());
        text.push('\n');
        let only_cores = next.iter().all(|domain| domain.level == Level::Core);
        if only_cores && below.is_empty() && !next.is_empty() {
            text.push_str(&format!("{indent}  {}\n", cores(&next)));
            return;
        }
        for domain in next {
            self.branch(text, domain, depth + 1, &below);
        }
    }

    /// Nodes have numbers that people use elsewhere, `numactl --membind 33`.
    fn what(&self, domain: &Domain) -> String {
        let is_this = |(number, cpus): (&u32, &CpuSet)| (*cpus == domain.cpus).then_some(*number);
        let node = self.topology.nodes.iter().find_map(is_this).filter(|_| domain.level == Level::Node);
        node.map_or_else(|| domain.level.to_string(), |number| format!("{} {number}:", domain.level))
    }
}

fn cores(cores: &[&Domain]) -> String {
    let threads = |count: usize| if count == 1 { "1 thread".to_owned() } else { format!("{count} threads") };
    let sizes: std::collections::BTreeSet<usize> = cores.iter().map(|core| core.cpus.len()).collect();
    let each: Vec<String> = sizes.into_iter().map(threads).collect();
    format!(
        "{} of {}",
        if cores.len() == 1 { "1 core".to_owned() } else { format!("{} cores", cores.len()) },
        each.join(" or ")
    )
}

fn or_none(set: &CpuSet) -> String {
    if set.is_empty() { "none".to_owned() } else { set.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shape::Shape;
    use crate::model::topology::Kind;

    fn seat(name: &str, cpus: &str) -> (String, CpuSet) {
        (name.to_owned(), cpus.parse().unwrap())
    }

    #[test]
    fn the_tree_shows_who_sits_where() {
        let shape: Shape = "2 packages x 2 llc x 2 cores x 2 threads".parse().unwrap();
        let seated = [seat("db", "0,8"), seat("web", "4-7,12-15"), seat("cache", "2-3"), seat("batch", "0-15")];
        insta::assert_snapshot!(draw(&shape.topology(), &seated), @r"
        machine 0-15  batch
          package 0-3,8-11
            last-level cache 0-1,8-9
              core 0,8  db
              core 1,9
            last-level cache 2-3,10-11  cache (2-3)
              2 cores of 2 threads
          package 4-7,12-15  web
            last-level cache 4-5,12-13
              2 cores of 2 threads
            last-level cache 6-7,14-15
              2 cores of 2 threads
        ");
    }

    #[test]
    fn nodes_are_drawn_with_their_numbers() {
        let shape: Shape = "1 package x 2 numa x 1 cores".parse().unwrap();
        insta::assert_snapshot!(draw(&shape.topology(), &[seat("web", "1")]), @r"
        machine 0-1
          NUMA node 0: 0
          NUMA node 1: 1  web
        ");
    }

    #[test]
    fn what_is_odd_about_a_machine_is_said() {
        let mut topology = "1 package x 4 cores".parse::<Shape>().unwrap().topology();
        topology.usable = "1-3".parse().unwrap();
        topology.offline = "4-5".parse().unwrap();
        topology.nodes.insert(7, CpuSet::new());
        let kind = |cpus: &str, efficiency| Kind { cpus: cpus.parse().unwrap(), efficiency, ..Kind::default() };
        topology.kinds = vec![kind("2-3", 0), kind("0-1", 1)];
        insta::assert_snapshot!(draw(&topology, &[]), @r"
        machine 0-3
          4 cores of 1 thread
        usable by workloads: 1-3
        switched off: 4-5
        NUMA node 7 has no CPUs
        kind 1 of 2: 2-3
        kind 2 of 2: 0-1
        ");
    }
}
