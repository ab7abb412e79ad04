//! Documents: the file form of resources. A file holds one or several, in YAML, with `---` between them, or in JSON, one
//! after the other or in a list.
//!
//! ```yaml
//! kind: user
//! version: v1
//! metadata:
//!   name: alice
//!   revision: 7
//! spec:
//!   roles: [access]
//! ```
//!
//! A field that is not known is an error: a misspelt restriction must not become no restriction.

use std::time::SystemTime;

use anyhow::Result;
use mezite_client::Client;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use super::{Kind, existing};
use crate::{
    args::Human,
    exit::{Conflict, Usage},
    role_file::Version,
};

/// A document of most kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document<S, T> {
    kind: String,
    #[serde(default)]
    version: Version,
    #[serde(default)]
    pub(crate) metadata: Metadata,
    /// What is wanted.
    pub(crate) spec: S,
    /// What the cluster says beside it: printed, and ignored when read.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<T>,
}

/// Which resource it is.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    /// Absent where the cluster gives an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The revision that it replaces; absent: whichever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<u64>,
}

impl<S, T> Document<S, T> {
    /// What is printed.
    pub(crate) fn new(kind: &str, name: String, revision: Option<u64>, spec: S, status: T) -> Self {
        Self { status: Some(status), ..Self::without_status(kind, name, revision, spec) }
    }

    /// What is printed where the cluster says nothing beside it.
    pub(crate) fn without_status(kind: &str, name: String, revision: Option<u64>, spec: S) -> Self {
        let metadata = Metadata { name: Some(name), revision };
        Self { kind: kind.to_owned(), version: Version::V1, metadata, spec, status: None }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.metadata.name.as_deref()
    }

    /// The same without a name, and of whichever revision.
    pub(crate) fn unnamed(&self) -> Self
    where
        S: Clone,
        T: Clone,
    {
        Self { metadata: Metadata::default(), ..self.clone() }
    }

    /// The name, where nobody but the document gives one.
    ///
    /// # Errors
    /// [`Usage`] when it has none.
    pub(crate) fn needed_name(&self) -> Result<String> {
        self.metadata.name.clone().ok_or_else(|| Usage("`metadata.name` is missing".into()).into())
    }

    /// The revision of an update; 0: whichever it is.
    pub(crate) fn revision(&self) -> u64 {
        self.metadata.revision.unwrap_or_default()
    }
}

/// How long something lasts that has a beginning and an end.
pub(crate) fn lasts(from: Option<Timestamp>, until: Option<Timestamp>) -> Option<Human> {
    let (from, until) = (SystemTime::try_from(from?).ok()?, SystemTime::try_from(until?).ok()?);
    until.duration_since(from).ok().map(Human)
}

/// Refuses a document of what is there already.
///
/// # Errors
/// [`Conflict`]; what the cluster answers to the question.
pub(crate) async fn refuse_existing<K: Kind>(client: &Client, name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    match existing::<K>(client, name).await? {
        Some(_) => Err(Conflict(format!("{} {name} is there already", K::NAME)).into()),
        None => Ok(()),
    }
}

/// Whether a document wants what is there.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn says_the_same<K: Kind>(current: &K::Document, wanted: &K::Document) -> Result<bool> {
    let (mut current, mut wanted) = (current.clone(), wanted.clone());
    K::fill(&mut wanted, &current);
    K::settle(&mut current);
    K::settle(&mut wanted);
    Ok(said(&current)? == said(&wanted)?)
}

/// A document without what the cluster says.
fn said(document: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(document)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
        // Which it is, is known; it may be told in the plural.
        fields.remove("kind");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("revision");
            metadata.remove("built_in");
        }
    }
    Ok(value)
}

/// A document of a file, of which no more is known than whose it is.
pub(crate) struct Source<'a> {
    /// From 1 on.
    number: usize,
    pub(crate) kind: String,
    name: String,
    text: Text<'a>,
}

enum Text<'a> {
    Json(&'a str),
    Yaml(Box<serde_norway::Deserializer<'a>>),
}

/// What is looked at to know what a document is.
#[derive(Deserialize)]
struct Head {
    kind: Option<String>,
    #[serde(default)]
    metadata: HeadMetadata,
}

#[derive(Default, Deserialize)]
struct HeadMetadata {
    name: Option<String>,
}

impl Source<'_> {
    /// For messages: `document 2 (user/alice)`.
    pub(crate) fn title(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!("/{}", self.name) };
        format!("document {} ({}{name})", self.number, self.kind)
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Usage`]: what is wrong, and where. Lines are counted in the file, and in JSON in the document.
    pub(crate) fn parse<T: DeserializeOwned>(self) -> Result<T> {
        let title = self.title();
        let parsed = match self.text {
            Text::Json(text) => serde_json::from_str(text).map_err(|error| error.to_string()),
            Text::Yaml(document) => T::deserialize(*document).map_err(|error| error.to_string()),
        };
        parsed.map_err(|error| Usage(format!("{title}: {error}")).into())
    }
}

/// The documents of a file. Those that are empty are left out.
///
/// # Errors
/// [`Usage`] for what is neither YAML nor JSON, has a document without a kind, or has none at all; but a list may be empty.
pub(crate) fn read(text: &str) -> Result<Vec<Source<'_>>> {
    let text_of_json = text.trim_start();
    let sources = if text_of_json.starts_with(['{', '[']) { json(text)? } else { yaml(text)? };
    if sources.is_empty() && !text_of_json.starts_with('[') {
        return Err(Usage("there is no document in it".into()).into());
    }
    Ok(sources)
}

fn source<'a>(number: usize, head: Result<Head, String>, text: Text<'a>) -> Result<Source<'a>> {
    let head = head.map_err(|error| Usage(format!("document {number}: {error}")))?;
    let Some(kind) = head.kind else {
        let names = super::names();
        return Err(Usage(format!("document {number} has no `kind`: kinds are {names}")).into());
    };
    Ok(Source { number, kind, name: head.metadata.name.unwrap_or_default(), text })
}

fn json(text: &str) -> Result<Vec<Source<'_>>> {
    let texts: Result<Vec<&RawValue>, _> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text),
        false => serde_json::Deserializer::from_str(text).into_iter().collect(),
    };
    let texts = texts.map_err(|error| Usage(format!("this is no JSON: {error}")))?;
    let each = (1..).zip(texts).map(|(number, text)| {
        let head = serde_json::from_str(text.get()).map_err(|error| error.to_string());
        source(number, head, Text::Json(text.get()))
    });
    each.collect()
}

fn yaml(text: &str) -> Result<Vec<Source<'_>>> {
    // Read twice, since a document that was looked at is used up, and what is wrong is told by its line in the file.
    let documents = || serde_norway::Deserializer::from_str(text);
    let mut sources = Vec::new();
    for (head, document) in documents().zip(documents()) {
        let number = sources.len() + 1;
        match Option::<Head>::deserialize(head).map_err(|error| error.to_string()) {
            Ok(None) => {}
            Ok(Some(head)) => sources.push(source(number, Ok(head), Text::Yaml(Box::new(document)))?),
            Err(error) => return Err(Usage(format!("document {number}: {error}")).into()),
        }
    }
    Ok(sources)
}
