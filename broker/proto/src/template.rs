//! Text in which `${clientId}` and `${username}` stand for a connection's own.

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("names the unknown placeholder `${{{0}}}`: use `${{clientId}}` or `${{username}}`")]
    UnknownPlaceholder(String),
    #[error("has `${{` without `}}`: close the placeholder")]
    UnclosedPlaceholder,
}

/// A text whose placeholders are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub(crate) parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(Box<str>),
    ClientId,
    Username,
}

impl Template {
    /// # Errors
    /// A placeholder that is not known, or not closed.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((text, placeholder)) = rest.split_once("${") {
            let Some((name, after)) = placeholder.split_once('}') else {
                return Err(TemplateError::UnclosedPlaceholder);
            };
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
            parts.push(match name {
                "clientId" => Part::ClientId,
                "username" => Part::Username,
                _ => return Err(TemplateError::UnknownPlaceholder(name.to_owned())),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Template { parts })
    }

    /// Whether the text is another one for another connection.
    pub fn has_placeholder(&self) -> bool {
        self.parts.iter().any(|part| !matches!(part, Part::Text(_)))
    }

    /// The text for the connection of this client and user.
    pub fn fill(&self, client_id: &str, username: &str) -> String {
        let value = |part| match part {
            &Part::ClientId => client_id,
            &Part::Username => username,
            Part::Text(text) => text,
        };
        self.parts.iter().map(value).collect()
    }
}
