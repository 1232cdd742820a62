//! What was retained, and what a new subscriber may find of it.

use std::collections::BTreeMap;

use super::{Ledger, Rule, Sent};

/// What was published with RETAIN under one topic, in order.
#[derive(Default)]
pub(super) struct RetainedTopic {
    pub(super) history: Vec<Value>,
}

pub(super) struct Value {
    pub(super) number: u32,
    clears: bool,
    /// By this node.
    pub(super) acked: Option<usize>,
    /// Nodes that it was sent to without an answer: they may come to it when others were acknowledged elsewhere.
    strays: Vec<usize>,
}

impl Ledger {
    pub(in crate::simulation) fn retains(&mut self, number: u32, clears: bool) {
        let Sent { topic, .. } = &self.messages[number as usize];
        let of = self.retained.entry(topic.clone()).or_default();
        of.history.push(Value { number, clears, acked: None, strays: Vec::new() });
        // Without a payload it can't be told from another.
        self.messages[number as usize].mortal |= clears;
    }

    /// The connection to this node is gone, and the message has no answer.
    pub(in crate::simulation) fn strays(&mut self, number: u32, node: usize) {
        let topic = &self.messages[number as usize].topic;
        let history = self.retained.get_mut(topic).into_iter().flat_map(|of| &mut of.history);
        history.filter(|value| value.number == number).for_each(|value| value.strays.push(node));
    }

    /// What a new subscriber to everything retained found on a node.
    pub(in crate::simulation) fn found_retained(
        &mut self,
        node: usize,
        found: &BTreeMap<String, u32>,
        since: u64,
    ) {
        let mut wrong = Vec::new();
        for (topic, of) in &self.retained {
            let sure = of.history.iter().rposition(|value| value.acked.is_some());
            let by = sure.and_then(|sure| of.history[sure].acked);
            let (before, values) = of.history.split_at(sure.unwrap_or(0));
            let late = before.iter().filter(|value| value.strays.iter().any(|node| Some(*node) != by));
            let values = || values.iter().chain(late.clone());
            let fits = match found.get(topic) {
                Some(number) => values().any(|value| value.number == *number && !value.clears),
                None => sure.is_none() || values().any(|value| value.clears),
            };
            if !fits {
                let may: Vec<_> = values().map(|value| (value.number, value.clears)).collect();
                wrong.push(format!("{topic:?} has {:?} on node {node}, may have {may:?}", found.get(topic)));
            }
        }
        self.judged(Rule::Retained, since);
        if let Some(wrong) = wrong.pop() {
            self.violate(Rule::Retained, wrong);
        }
    }
}
