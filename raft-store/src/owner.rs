//! What a data directory belongs to: its format, cluster and node.

use prost::Message;

use crate::{
    db::{Db, FORMAT_VERSION, meta_key},
    error::StoreError,
    failure::{Point, pass},
};

/// What the data directory belongs to.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Owner {
    #[prost(string, tag = "1")]
    pub(crate) cluster_id: String,
    #[prost(uint64, tag = "2")]
    pub(crate) node_id: u64,
}

impl Owner {
    /// Adds format and owner to a batch.
    pub(crate) fn write(&self, db: &Db, batch: &mut rocksdb::WriteBatch) -> Result<(), StoreError> {
        let meta = db.raft_meta()?;
        batch.put_cf(&meta, meta_key::FORMAT, FORMAT_VERSION.to_be_bytes());
        batch.put_cf(&meta, meta_key::OWNER, self.encode_to_vec());
        Ok(())
    }

    /// Reads the owner. `None`: the database is new.
    pub(crate) fn read(db: &Db) -> Result<Option<Self>, StoreError> {
        let meta = db.raft_meta()?;
        let unsound = |what: String| StoreError::DataDirectory(what);
        let Some(bytes) = db.rocks().get_cf(&meta, meta_key::FORMAT)? else { return Ok(None) };
        let version =
            bytes.try_into().map(u32::from_be_bytes).map_err(|_| unsound("no format version".into()))?;
        if version > FORMAT_VERSION {
            return Err(unsound(format!(
                "the data directory has format {version}; this release knows {FORMAT_VERSION}: run the newer release"
            )));
        }
        let owner = db.rocks().get_cf(&meta, meta_key::OWNER)?.unwrap_or_default();
        let owner = Self::decode(owner.as_slice());
        owner.map(Some).map_err(|error| unsound(format!("the owner does not decode: {error}")))
    }

    /// Checks that the database is of this owner, or makes it so.
    pub(crate) fn claim(&self, db: &Db) -> Result<(), StoreError> {
        let found = match Self::read(db)? {
            Some(found) => found,
            None => {
                pass(Point::ClaimBeforeWrite)?;
                let mut batch = rocksdb::WriteBatch::default();
                self.write(db, &mut batch)?;
                db.write(batch, true)?;
                pass(Point::ClaimAfterWrite)?;
                return Ok(());
            }
        };
        if &found == self {
            return Ok(());
        }
        Err(StoreError::DataDirectory(format!(
            "the data directory belongs to node {} of cluster {}; this is node {} of cluster {}",
            found.node_id, found.cluster_id, self.node_id, self.cluster_id
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_a_newer_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("db")).unwrap();
        let owner = Owner { cluster_id: "c".into(), node_id: 7 };
        assert_eq!(owner.encode_to_vec(), [0x0a, 1, b'c', 0x10, 7]);
        assert_eq!(Owner::read(&db).unwrap(), None);
        owner.claim(&db).unwrap();
        owner.claim(&db).unwrap();
        let meta = db.raft_meta().unwrap();
        assert_eq!(db.rocks().get_cf(&meta, b"format").unwrap().unwrap(), [0, 0, 0, 1]);
        assert_eq!(db.rocks().get_cf(&meta, b"owner").unwrap().unwrap(), owner.encode_to_vec());
        let other = Owner { node_id: 8, ..owner.clone() }.claim(&db).unwrap_err().to_string();
        assert!(other.contains("belongs to node 7 of cluster c"), "{other}");
        db.rocks().put_cf(&meta, b"format", [0, 0, 0, 2]).unwrap();
        assert!(owner.claim(&db).unwrap_err().to_string().contains("newer release"));
    }
}
