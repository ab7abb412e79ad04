//! Resources: what `mezctl get`, `create` and `rm` work on, each kind by the same few steps.
//!
//! A kind is a file here: its document, which is what `get` prints and `create` reads, and a [`Kind`] that says how it is
//! listed, made, replaced and removed. To add one: the file, and a line in [`KINDS`].

mod access_request;
mod agent_identity;
mod cluster_config;
mod connector;
mod document;
mod lock;
mod node;
mod role;
mod session;
mod token;
mod trusted_cluster;
mod user;

use std::marker::PhantomData;

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, future::LocalBoxFuture};
use mezite_client::Client;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::{
    cli::Format,
    exit::{Usage, is_not_found},
    output,
};

pub(crate) use document::{Source, read};

/// Every kind, in the order in which they are told.
pub(crate) const KINDS: &[&dyn AnyKind] = &[
    &Of::<user::User>(PhantomData),
    &Of::<role::Role>(PhantomData),
    &Of::<token::Token>(PhantomData),
    &Of::<lock::Lock>(PhantomData),
    &Of::<node::Node>(PhantomData),
    &Of::<session::Session>(PhantomData),
    &Of::<access_request::AccessRequest>(PhantomData),
    &Of::<cluster_config::ClusterConfig>(PhantomData),
    &Of::<connector::Connector>(PhantomData),
    &Of::<trusted_cluster::TrustedCluster>(PhantomData),
    &Of::<agent_identity::AgentIdentity>(PhantomData),
];

/// What is the same for all documents of a `create`.
#[derive(Default)]
pub(crate) struct Options {
    /// Whether what is there is replaced.
    pub(crate) force: bool,
    /// Password of users that are made; `None`: an invite is made for each, which is shown once.
    pub(crate) password: Option<Zeroizing<String>>,
    /// Who is logged in.
    pub(crate) user: String,
}

/// What was made.
pub(crate) struct Made {
    /// Name, or the id that the cluster gave it.
    pub(crate) name: String,
    /// What nobody can be told again: what it is, and the secret.
    pub(crate) secret: Option<(&'static str, Zeroizing<String>)>,
}

impl Made {
    /// Without a secret.
    pub(crate) fn plain(name: String) -> Self {
        Self { name, secret: None }
    }
}

/// A kind of resources.
pub(crate) trait Kind: 'static {
    /// As documents name it.
    const NAME: &'static str;
    /// Several of it.
    const PLURAL: &'static str;
    /// What the cluster answers.
    type Item;
    /// What is printed and read. Its `status`, if it has one, and `metadata.revision` say nothing of what is wanted.
    type Document: Clone + Serialize + DeserializeOwned + From<Self::Item> + 'static;

    /// Whether [`Kind::replace`] can do anything.
    const REPLACEABLE: bool;

    /// Whether the cluster alone names what is made: under another id than a document has that was printed.
    const NAMED_BY_CLUSTER: bool = false;

    /// The name in a document. `None`: the cluster gives one.
    fn name(document: &Self::Document) -> Option<&str>;

    /// Refuses a document that cannot be applied whatever there is. Nothing is asked.
    fn check(_document: &Self::Document, _options: &Options) -> Result<()> {
        Ok(())
    }

    /// Whether it holds what nobody else may read.
    fn has_secret(_document: &Self::Document) -> bool {
        false
    }

    /// Brings a document into the form in which it is compared (see [`crate::normal`]): names in their canonical spelling,
    /// and sets in one order.
    fn settle(document: &mut Self::Document);

    /// Fills in, from what is there, what a document leaves to the cluster.
    fn fill(_document: &mut Self::Document, _current: &Self::Document) {}

    /// One that stands for a document without a name, or with the name of one that is gone; `None` where there is none.
    async fn like(
        _client: &Client,
        _document: &Self::Document,
        _options: &Options,
    ) -> Result<Option<Self::Item>> {
        Ok(None)
    }

    /// For people.
    fn table(items: Vec<Self::Item>) -> String;

    /// All of them that the caller sees.
    async fn all(client: &Client) -> Result<Vec<Self::Item>>;

    /// One of them; an error of the outcome "not found" when there is none.
    async fn one(client: &Client, name: &str) -> Result<Self::Item>;

    /// Makes one; an error of the outcome "conflict" when it is there.
    async fn create(client: &Client, document: Self::Document, options: &Options) -> Result<Made>;

    /// Replaces the one of this name, under the document's revision if it has one.
    async fn replace(client: &Client, document: Self::Document) -> Result<()>;

    /// Removes one.
    async fn remove(client: &Client, name: &str) -> Result<()>;
}

/// What `create` did with a document.
#[derive(Serialize)]
pub(crate) struct Applied {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// `created`, `updated` or `unchanged`.
    pub(crate) action: &'static str,
    /// The id in the document, where what stands for it has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instead_of: Option<String>,
    /// What the secret is: an invite, a token's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_of: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Zeroizing<String>>,
}

/// A document that was read, and is to be applied.
pub(crate) trait Plan {
    /// Whether what is there already can be replaced by it.
    fn can_replace(&self) -> bool;

    /// Whether it holds what nobody else may read.
    fn has_secret(&self) -> bool;

    /// Makes what it says, or, if that is wanted, replaces what is there.
    fn apply<'a>(
        self: Box<Self>,
        client: &'a Client,
        options: &'a Options,
    ) -> LocalBoxFuture<'a, Result<Applied>>;
}

/// A [`Kind`] that is not known by its type.
pub(crate) trait AnyKind: Sync {
    /// As documents name it.
    fn name(&self) -> &'static str;

    /// Several of it.
    fn plural(&self) -> &'static str;

    /// One of them, or all, as they are printed: one text a document, and a table for people.
    fn show<'a>(
        &self,
        client: &'a Client,
        name: Option<&'a str>,
        format: Format,
    ) -> LocalBoxFuture<'a, Result<Vec<String>>>;

    /// Reads a document, and looks whether it can be applied.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    fn plan(&self, source: Source<'_>, options: &Options) -> Result<Box<dyn Plan>>;

    /// Removes one.
    fn remove<'a>(&self, client: &'a Client, name: &'a str) -> LocalBoxFuture<'a, Result<()>>;
}

struct Of<K>(PhantomData<fn() -> K>);

struct Planned<K: Kind>(K::Document);

impl<K: Kind> AnyKind for Of<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn plural(&self) -> &'static str {
        K::PLURAL
    }

    fn show<'a>(
        &self,
        client: &'a Client,
        name: Option<&'a str>,
        format: Format,
    ) -> LocalBoxFuture<'a, Result<Vec<String>>> {
        show::<K>(client, name, format).boxed_local()
    }

    fn plan(&self, source: Source<'_>, options: &Options) -> Result<Box<dyn Plan>> {
        let title = source.title();
        let document = source.parse()?;
        K::check(&document, options).context(title)?;
        Ok(Box::new(Planned::<K>(document)))
    }

    fn remove<'a>(&self, client: &'a Client, name: &'a str) -> LocalBoxFuture<'a, Result<()>> {
        K::remove(client, name).boxed_local()
    }
}

impl<K: Kind> Plan for Planned<K> {
    fn can_replace(&self) -> bool {
        K::REPLACEABLE
    }

    fn has_secret(&self) -> bool {
        K::has_secret(&self.0)
    }

    fn apply<'a>(
        self: Box<Self>,
        client: &'a Client,
        options: &'a Options,
    ) -> LocalBoxFuture<'a, Result<Applied>> {
        apply::<K>(client, self.0, options).boxed_local()
    }
}

async fn show<K: Kind>(client: &Client, name: Option<&str>, format: Format) -> Result<Vec<String>> {
    let items = match name {
        Some(name) => vec![K::one(client, name).await?],
        None => K::all(client).await?,
    };
    if format == Format::Text {
        return Ok(vec![K::table(items)]);
    }
    let print = |item: K::Item| -> Result<String> {
        let document = K::Document::from(item);
        match format {
            Format::Json => Ok(output::json(&document)? + "\n"),
            Format::Yaml | Format::Text => output::yaml(&document),
        }
    };
    items.into_iter().map(print).collect()
}

async fn apply<K: Kind>(client: &Client, document: K::Document, options: &Options) -> Result<Applied> {
    let id = K::name(&document).filter(|_| K::NAMED_BY_CLUSTER).map(str::to_owned);
    let done = |name: String, action| Applied {
        instead_of: id.clone().filter(|id| *id != name),
        kind: K::NAME,
        name,
        action,
        secret_of: None,
        secret: None,
    };
    // In the spelling of the cluster.
    let spelt = |document: &K::Document| K::name(document).unwrap_or_default().to_owned();
    if options.force {
        let named = match K::name(&document) {
            Some(name) => existing::<K>(client, name).await?.map(K::Document::from),
            None => None,
        };
        if let Some(current) = named {
            if document::says_the_same::<K>(&current, &document)? {
                return Ok(done(spelt(&current), "unchanged"));
            }
            K::replace(client, document).await?;
            return Ok(done(spelt(&current), "updated"));
        }
        if let Some(like) = K::like(client, &document, options).await? {
            return Ok(done(spelt(&like.into()), "unchanged"));
        }
    }
    let Made { name, secret } = K::create(client, document, options).await?;
    let (secret_of, secret) = secret.unzip();
    Ok(Applied { secret_of, secret, ..done(name, "created") })
}

async fn existing<K: Kind>(client: &Client, name: &str) -> Result<Option<K::Item>> {
    match K::one(client, name).await {
        Ok(item) => Ok(Some(item)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A kind by its name, or that of several.
pub(crate) fn kind(text: &str) -> Result<&'static dyn AnyKind> {
    let found = KINDS.iter().find(|kind| kind.name() == text || kind.plural() == text);
    found.copied().ok_or_else(|| Usage(format!("there is no kind `{text}`: kinds are {}", names())).into())
}

/// All kinds, for people.
pub(crate) fn names() -> String {
    KINDS.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// What a command line names: a kind, and one of it or all.
pub(crate) struct Reference {
    pub(crate) kind: &'static dyn AnyKind,
    pub(crate) name: Option<String>,
}

/// Reads `users`, `user/alice`, `role/dev,lock/…`.
pub(crate) fn references(texts: &[String]) -> Result<Vec<Reference>> {
    let mut found: Vec<Reference> = Vec::new();
    for text in texts.iter().flat_map(|text| text.split(',')) {
        let (kind_name, name) = text.split_once('/').map_or((text, None), |(kind, name)| (kind, Some(name)));
        if name.is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err(Usage(format!("`{text}` names nothing: write KIND or KIND/NAME")).into());
        }
        let kind = match (kind(kind_name), found.last()) {
            (Ok(kind), _) => kind,
            (Err(_), Some(Reference { kind: before, name: None })) if name.is_none() && !text.is_empty() => {
                let before = before.name();
                let what = format!(
                    "there is no kind `{text}`: for the {before} of this name, write {before}/{text}"
                );
                return Err(Usage(what).into());
            }
            (Err(error), _) => return Err(error),
        };
        found.push(Reference { kind, name: name.map(str::to_owned) });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
