//! Topic aliases of one connection (MQTT 5 section 3.3.2.3.4): numbers that stand for topics, each direction its own.
//!
//! Both tables are bounded, as either may hold topics of 64 KiB.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;

use super::{Violation, violation};
use crate::codec::{Publish, Reason};

/// The largest alias either side may use here.
pub const TOPIC_ALIAS_MAXIMUM: u16 = 16;

/// What the client's aliases stand for.
#[derive(Debug, Default)]
pub(super) struct InboundAliases {
    topics: HashMap<u16, Arc<str>, RandomState>,
}

impl InboundAliases {
    /// The topic that an alias alone names; none: the PUBLISH names its topic itself.
    pub(super) fn resolve(&mut self, publish: &Publish<'_>) -> Result<Option<Arc<str>>, Violation> {
        let Some(alias) = publish.properties.topic_alias else { return Ok(None) };
        if alias == 0 || alias > TOPIC_ALIAS_MAXIMUM {
            let what = "a topic alias above the Topic Alias Maximum";
            return Err(Violation { reason: Reason::TopicAliasInvalid, what });
        }
        if publish.topic.is_empty() {
            let topic = self.topics.get(&alias).cloned();
            return topic.map(Some).ok_or(violation("a topic alias that stands for nothing"));
        }
        if self.topics.get(&alias).is_none_or(|topic| **topic != *publish.topic) {
            self.topics.insert(alias, publish.topic.into());
        }
        Ok(None)
    }
}

/// What stands for topics towards the client: each topic gets an alias at its first delivery, while there are any.
#[derive(Debug, Default)]
pub(super) struct OutboundAliases {
    allowed: u16,
    aliases: HashMap<Box<str>, u16, RandomState>,
}

/// How a topic may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Plain,
    /// With an alias that the client does not know yet: [`OutboundAliases::told`] when it is sent.
    With(u16),
    /// As an alias alone.
    As(u16),
}

impl OutboundAliases {
    /// `allowed` is the client's Topic Alias Maximum; 0: none.
    pub(super) fn new(allowed: u16) -> OutboundAliases {
        OutboundAliases { allowed: allowed.min(TOPIC_ALIAS_MAXIMUM), aliases: HashMap::default() }
    }

    pub(super) fn write(&self, topic: &str) -> Written {
        if self.allowed == 0 {
            return Written::Plain;
        }
        match self.aliases.get(topic) {
            Some(alias) => Written::As(*alias),
            None => self.next().map_or(Written::Plain, Written::With),
        }
    }

    /// The client knows now what the alias that [`OutboundAliases::write`] gave stands for.
    pub(super) fn told(&mut self, topic: &str) {
        if let Some(alias) = self.next() {
            self.aliases.insert(topic.into(), alias);
        }
    }

    fn next(&self) -> Option<u16> {
        let next = u16::try_from(self.aliases.len() + 1).ok()?;
        (next <= self.allowed).then_some(next)
    }
}
