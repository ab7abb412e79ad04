//! openraft's own storage suite, on the real store.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::{StoreBuilder, Suite},
};

use super::{LogStore, StateMachine, TypeConfig};
use crate::{db::Db, fatal::Fatal, status::Progress, tests::config, watch::Hub};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<u64>> {
        let folder = tempfile::tempdir().unwrap();
        let fatal = Fatal::new(|reason| panic!("{reason}"));
        let db = Arc::new(Db::open(&folder.path().join("db")).unwrap());
        let log = LogStore::open(Arc::clone(&db), fatal.clone()).unwrap();
        let config = config(folder.path(), 0);
        let state =
            StateMachine::open(db, &config, Arc::new(Hub::new(1 << 20)), Progress::new(), fatal).unwrap();
        Ok((folder, log, state))
    }
}

#[test]
fn openraft_storage_suite() {
    Suite::test_all(Builder).unwrap();
}
