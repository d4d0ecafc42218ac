use std::{
    collections::HashSet,
    fs,
    time::{Duration, SystemTime},
};

use super::{super::disk::LayerFiles, *};

#[test]
fn files_longest_unused_go_first_and_leftovers_go_at_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(".half"), b"x").unwrap();
    let files = LayerFiles::open(directory.path()).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let layers = ["a", "b", "c"].map(|name| layer(Tar::default().file(name, "x")).unwrap());
    for (age, layer) in layers.iter().enumerate() {
        files.save(layer, &HashSet::new()).unwrap();
        let file = fs::File::options()
            .write(true)
            .open(files.path(&layer.diff_id()))
            .unwrap();
        let age = Duration::from_secs(1000 * u64::try_from(age + 1).unwrap());
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    // `c` is the oldest, until it is used.
    assert_eq!(
        files.load(&layers[2].diff_id()).unwrap().as_ref(),
        Some(&layers[2])
    );
    let length = fs::metadata(files.path(&layers[0].diff_id()))
        .unwrap()
        .len();
    // What is in use stays, however old.
    let in_use = HashSet::from([layers[2].diff_id()]);
    files.load(&layers[0].diff_id()).unwrap();
    files.trim(2 * length, &in_use).unwrap();
    assert_eq!(files.count().unwrap(), 2);
    assert_eq!(files.load(&layers[1].diff_id()).unwrap(), None);
    files.trim(0, &in_use).unwrap();
    assert_eq!(files.count().unwrap(), 1);
    assert!(files.load(&layers[2].diff_id()).unwrap().is_some());
}
