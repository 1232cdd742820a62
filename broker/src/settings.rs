//! What this node is told to be, compiled: one snapshot that every task reads, replaced as a whole.

use std::{collections::HashMap, sync::Arc};

use mqtt_broker_api::{
    acl::AclDocument,
    admin::AclView,
    config::{Characters, InstanceConfig, Limits, Ordering},
    shards,
};
use mqtt_proto::{message::Millis, template::Template, topic::strict_characters};

use crate::{
    auth::Access,
    log::{Log, LogError, Topic, TopicSettings},
    session::mailbox::Caps,
};

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: InstanceConfig,
    pub(crate) access: Access,
    /// Which document `access` was made of.
    pub(crate) acl: AclView,
    /// Told to who asks for response information.
    pub(crate) response_information: Option<Template>,
    parents: HashMap<Box<str>, Arc<Parent>>,
}

/// Why settings can't be put in force.
pub(crate) struct Problems {
    /// One each.
    pub(crate) lines: Vec<String>,
    /// Nothing is wrong with the settings: the log could not be asked.
    pub(crate) may_pass: bool,
}

/// A registered parent topic.
#[derive(Debug)]
pub(crate) struct Parent {
    pub(crate) topic: Topic,
    pub(crate) ordering: Ordering,
}

impl Settings {
    /// Compiles the documents and makes sure that their topics are in the log.
    pub(crate) async fn compile(
        config: InstanceConfig,
        acl: &AclDocument,
        log: &dyn Log,
    ) -> Result<Settings, Problems> {
        let access = Access::compile(acl).map_err(|lines| Problems { lines, may_pass: false })?;
        let asked = config.session.response_information.as_deref().map(Template::parse).transpose();
        let response_information = asked.map_err(|error| Problems {
            lines: vec![format!("session.responseInformation {error}")],
            may_pass: false,
        })?;
        let acl = AclView { generation: acl.generation, hash: shards::hash(acl), users: acl.users.len() };
        let mut parents = HashMap::new();
        let mut problems = Problems { lines: Vec::new(), may_pass: true };
        for parent in &config.parents {
            let settings = TopicSettings::of_parent(parent, config.limits.packet_size);
            match log.ensure_topic(&parent.topic, settings).await {
                Ok(topic) => {
                    let parent = Parent { topic, ordering: parent.ordering };
                    parents.insert(Box::from(parent.topic.name()), Arc::new(parent));
                }
                Err(error) => {
                    problems.may_pass &= matches!(error, LogError::Store(_));
                    problems.lines.push(format!("parent topic {:?}: {error}", parent.topic));
                }
            }
        }
        match problems.lines.is_empty() {
            true => Ok(Settings { config, access, acl, response_information, parents }),
            false => Err(problems),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    pub(crate) fn caps(&self) -> Caps {
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Caps {
            online: count(self.config.session.online_messages),
            offline: count(self.config.session.offline_messages),
        }
    }

    /// Whether the instance has come to its end.
    pub(crate) fn has_expired(&self, wall: impl FnOnce() -> Millis) -> bool {
        self.config.expires_at.is_some_and(|at| wall() / 1000 >= at)
    }

    /// The registered parent that a topic stands under.
    pub(crate) fn parent_of(&self, topic: &str) -> Option<Arc<Parent>> {
        self.parents.get(mqtt_proto::topic::parent_level(topic)?).cloned()
    }

    /// Whether a client ID, topic or filter keeps to the instance's characters.
    pub(crate) fn allows_characters(&self, text: &str, is_filter: bool) -> bool {
        self.config.limits.characters == Characters::Any || strict_characters(text, is_filter)
    }
}

impl AsRef<Access> for Settings {
    fn as_ref(&self) -> &Access {
        &self.access
    }
}
