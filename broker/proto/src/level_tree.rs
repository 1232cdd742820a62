//! A tree of topic levels with a value at the end of some paths: what the subscription trie and the retained
//! store have in common.
//!
//! A path is a [`crate::topic::Topic`] or [`crate::topic::Filter`] as text, so no path has more than
//! [`crate::topic::MAX_LEVELS`] levels; that bounds every recursion below. A path that nothing else shares is
//! kept as text from where it parts, so that a million subscriptions cost about 200 bytes each. A node
//! without value and without nodes below it is gone. Walks do not allocate.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::topic::{is_internal, levels_match};

#[derive(Debug)]
pub(crate) struct LevelTree<T> {
    root: Branch<T>,
}

/// A value's place; boxed so that the many places without one stay small.
type Slot<T> = Option<Box<T>>;

impl<T> LevelTree<T> {
    /// Hands the place at `path` to `fill`, which must not leave it empty.
    pub(crate) fn upsert<R>(&mut self, path: &str, fill: impl FnOnce(&mut Slot<T>) -> R) -> R {
        self.root.upsert(Some(path), fill)
    }

    /// Hands the place at `path`, if there is one, to `edit`, and removes what that leaves empty.
    pub(crate) fn edit<R>(&mut self, path: &str, edit: impl FnOnce(&mut Slot<T>) -> Option<R>) -> Option<R> {
        self.root.edit(Some(path), edit)
    }

    /// Paths are filters: visits the values of all that match the topic, each once.
    pub(crate) fn filters_matching(&self, topic: &str, mut visit: impl FnMut(&T)) {
        self.root.filters_matching(Some(topic), is_internal(topic), &mut visit);
    }

    /// Paths are topics: visits the values of all that the filter matches, each once, in no stated order.
    pub(crate) fn topics_matching(&self, filter: &str, mut visit: impl FnMut(&T)) {
        self.root.topics_matching(Some(filter), true, &mut visit);
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

impl<T> Default for LevelTree<T> {
    fn default() -> Self {
        LevelTree { root: Branch::default() }
    }
}

/// What lies below one level. It begins as a leaf and becomes a branch with its second path.
#[derive(Debug)]
enum Node<T> {
    Leaf(Leaf<T>),
    Branch(Box<Branch<T>>),
}

#[derive(Debug)]
struct Leaf<T> {
    /// What remains of the path with the `/` before it: empty at its end.
    rest: Box<str>,
    /// Missing only before the first value and after the last.
    value: Slot<T>,
}

#[derive(Debug)]
struct Branch<T> {
    children: Children<T>,
    /// Apart from `children`: every match asks for both, and most branches have neither.
    wild: Option<Box<Wild<T>>>,
    value: Slot<T>,
}

#[derive(Debug)]
struct Wild<T> {
    plus: Node<T>,
    /// `#` is always last, so a value is all it can have.
    hash: Slot<T>,
}

/// Nodes by level: most have one or a few, some hold every device.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "the size of the rare map would be the size of every branch")]
enum Children<T> {
    Few(Box<[(Box<str>, Node<T>)]>),
    Many(Box<HashMap<Box<str>, Node<T>, RandomState>>),
}

/// Up to here a search in a row is as quick as hashing, and smaller.
const FEW: usize = 8;

// In what follows, `rest` is what remains of the path, topic or filter that is asked for: none at its end,
// else at least one level, perhaps empty.

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.value.is_none(),
            Node::Branch(branch) => branch.is_empty(),
        }
    }

    fn upsert<R>(&mut self, rest: Option<&str>, fill: impl FnOnce(&mut Slot<T>) -> R) -> R {
        let leaf = match self {
            Node::Branch(branch) => return branch.upsert(rest, fill),
            Node::Leaf(leaf) => leaf,
        };
        if leaf.value.is_none() {
            *leaf = Leaf::new(rest, None);
        }
        if leaf.rest() == rest {
            return fill(&mut leaf.value);
        }
        let value = leaf.value.take();
        let mut branch = Box::new(Branch::of_one(leaf.rest(), value));
        let filled = branch.upsert(rest, fill);
        *self = Node::Branch(branch);
        filled
    }

    fn edit<R>(&mut self, rest: Option<&str>, edit: impl FnOnce(&mut Slot<T>) -> Option<R>) -> Option<R> {
        match self {
            Node::Leaf(leaf) if leaf.rest() == rest => edit(&mut leaf.value),
            Node::Leaf(_) => None,
            Node::Branch(branch) => branch.edit(rest, edit),
        }
    }

    fn filters_matching(&self, rest: Option<&str>, visit: &mut impl FnMut(&T)) {
        match self {
            // Most filters end without a wildcard, and then comparing the text is quicker.
            Node::Leaf(leaf) => {
                leaf.visit_if(visit, |own| own == rest || levels_match(levels(own), levels(rest)));
            }
            Node::Branch(branch) => branch.filters_matching(rest, false, visit),
        }
    }

    fn topics_matching(&self, rest: Option<&str>, visit: &mut impl FnMut(&T)) {
        match self {
            Node::Leaf(leaf) => leaf.visit_if(visit, |own| levels_match(levels(rest), levels(own))),
            Node::Branch(branch) => branch.topics_matching(rest, false, visit),
        }
    }

    fn all(&self, visit: &mut impl FnMut(&T)) {
        match self {
            Node::Leaf(leaf) => leaf.visit_if(visit, |_| true),
            Node::Branch(branch) => branch.all(false, visit),
        }
    }
}

impl<T> Leaf<T> {
    fn new(rest: Option<&str>, value: Slot<T>) -> Self {
        Leaf { rest: rest.map(|rest| format!("/{rest}")).unwrap_or_default().into(), value }
    }

    fn rest(&self) -> Option<&str> {
        self.rest.strip_prefix('/')
    }

    fn visit_if(&self, visit: &mut impl FnMut(&T), wanted: impl FnOnce(Option<&str>) -> bool) {
        if let Some(value) = self.value.as_deref()
            && wanted(self.rest())
        {
            visit(value);
        }
    }
}

impl<T> Branch<T> {
    fn of_one(rest: Option<&str>, value: Slot<T>) -> Self {
        let mut branch = Branch::default();
        match rest.map(split_level) {
            None => branch.value = value,
            Some(("#", _)) => branch.wild.get_or_insert_default().hash = value,
            Some(("+", rest)) => {
                branch.wild.get_or_insert_default().plus = Node::Leaf(Leaf::new(rest, value));
            }
            Some((level, rest)) => {
                branch.children =
                    Children::Few(Box::new([(level.into(), Node::Leaf(Leaf::new(rest, value)))]));
            }
        }
        branch
    }

    fn is_empty(&self) -> bool {
        self.value.is_none()
            && self.wild.is_none()
            && matches!(&self.children, Children::Few(few) if few.is_empty())
    }

    fn upsert<R>(&mut self, rest: Option<&str>, fill: impl FnOnce(&mut Slot<T>) -> R) -> R {
        match rest.map(split_level) {
            None => fill(&mut self.value),
            Some(("#", _)) => fill(&mut self.wild.get_or_insert_default().hash),
            Some(("+", rest)) => self.wild.get_or_insert_default().plus.upsert(rest, fill),
            Some((level, rest)) => self.children.upsert(level, |child| child.upsert(rest, fill)),
        }
    }

    fn edit<R>(&mut self, rest: Option<&str>, edit: impl FnOnce(&mut Slot<T>) -> Option<R>) -> Option<R> {
        let Some((level, rest)) = rest.map(split_level) else {
            return edit(&mut self.value);
        };
        if level != "#" && level != "+" {
            let child = self.children.get_mut(level)?;
            let edited = child.edit(rest, edit);
            if child.is_empty() {
                self.children.remove(level);
            }
            return edited;
        }
        let wild = self.wild.as_mut()?;
        let edited = if level == "#" { edit(&mut wild.hash) } else { wild.plus.edit(rest, edit) };
        if wild.hash.is_none() && wild.plus.is_empty() {
            self.wild = None;
        }
        edited
    }

    /// `hidden`: at the first level of a topic that wildcards may not reach (MQTT 4.7.2).
    fn filters_matching(&self, rest: Option<&str>, hidden: bool, visit: &mut impl FnMut(&T)) {
        let wild = self.wild.as_deref().filter(|_| !hidden);
        if let Some(value) = wild.and_then(|wild| wild.hash.as_deref()) {
            visit(value);
        }
        let Some((level, rest)) = rest.map(split_level) else {
            if let Some(value) = self.value.as_deref() {
                visit(value);
            }
            return;
        };
        if let Some(wild) = wild {
            wild.plus.filters_matching(rest, visit);
        }
        if let Some(child) = self.children.get(level) {
            child.filters_matching(rest, visit);
        }
    }

    fn topics_matching(&self, rest: Option<&str>, first: bool, visit: &mut impl FnMut(&T)) {
        match rest.map(split_level) {
            None => {
                if let Some(value) = self.value.as_deref() {
                    visit(value);
                }
            }
            Some(("#", _)) => self.all(first, visit),
            Some(("+", rest)) => {
                self.children.for_each(first, |child| child.topics_matching(rest, visit));
            }
            Some((level, rest)) => {
                if let Some(child) = self.children.get(level) {
                    child.topics_matching(rest, visit);
                }
            }
        }
    }

    /// This value and all below it.
    fn all(&self, first: bool, visit: &mut impl FnMut(&T)) {
        if let Some(value) = self.value.as_deref() {
            visit(value);
        }
        self.children.for_each(first, |child| child.all(visit));
    }
}

impl<T> Children<T> {
    fn get(&self, level: &str) -> Option<&Node<T>> {
        match self {
            Children::Few(few) => few.iter().find(|(own, _)| **own == *level).map(|(_, node)| node),
            Children::Many(many) => many.get(level),
        }
    }

    fn get_mut(&mut self, level: &str) -> Option<&mut Node<T>> {
        match self {
            Children::Few(few) => few.iter_mut().find(|(own, _)| **own == *level).map(|(_, node)| node),
            Children::Many(many) => many.get_mut(level),
        }
    }

    fn upsert<R>(&mut self, level: &str, fill: impl FnOnce(&mut Node<T>) -> R) -> R {
        if let Some(node) = self.get_mut(level) {
            return fill(node);
        }
        let mut node = Node::default();
        let filled = fill(&mut node);
        if let Children::Few(few) = self
            && few.len() == FEW
        {
            *self = Children::Many(Box::new(std::mem::take(few).into_iter().collect()));
        }
        match self {
            Children::Few(few) => {
                *few = std::mem::take(few).into_iter().chain([(level.into(), node)]).collect();
            }
            Children::Many(many) => {
                many.insert(level.into(), node);
            }
        }
        filled
    }

    fn remove(&mut self, level: &str) {
        match self {
            Children::Few(few) => {
                *few = std::mem::take(few).into_iter().filter(|(own, _)| **own != *level).collect();
            }
            Children::Many(many) => {
                many.remove(level);
                if many.len() <= FEW / 2 {
                    *self = Children::Few(many.drain().collect());
                } else if many.len() < many.capacity() / 8 {
                    // Memory and the time of a visit go with the capacity; halves of it keep this rare.
                    many.shrink_to(many.len() * 2);
                }
            }
        }
    }

    /// `first`: leaves out the levels that begin with `$`, which no wildcard may reach (MQTT 4.7.2).
    fn for_each(&self, first: bool, mut visit: impl FnMut(&Node<T>)) {
        let mut visit = |level: &str, node| {
            if !(first && level.starts_with('$')) {
                visit(node);
            }
        };
        match self {
            Children::Few(few) => few.iter().for_each(|(level, node)| visit(level, node)),
            Children::Many(many) => many.iter().for_each(|(level, node)| visit(level, node)),
        }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Node::Leaf(Leaf::new(None, None))
    }
}

impl<T> Default for Branch<T> {
    fn default() -> Self {
        Branch { children: Children::Few(Box::default()), wild: None, value: None }
    }
}

impl<T> Default for Wild<T> {
    fn default() -> Self {
        Wild { plus: Node::default(), hash: None }
    }
}

fn split_level(path: &str) -> (&str, Option<&str>) {
    match path.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (path, None),
    }
}

fn levels(rest: Option<&str>) -> impl Iterator<Item = &str> {
    rest.into_iter().flat_map(|rest| rest.split('/'))
}
