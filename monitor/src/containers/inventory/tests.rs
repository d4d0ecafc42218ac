use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::containers::{ContainerKind, Task};

const HOST_NAMESPACE: u32 = 1;
const NOW: u64 = 1_000_000;
/// Before the first listing of [`Bench::connected`].
const EARLY: u64 = 1;

fn key(id: &str) -> Key {
    Key {
        namespace: "n".to_owned(),
        id: id.to_owned(),
    }
}

fn facts(id: &str, created: i128, path: &str) -> Facts {
    let mut facts = Facts::of_vanished("n", id, "", created);
    facts.cgroup_path = Some(path.as_bytes().to_vec());
    // So that a container says which creation it is of.
    facts.container.name = created.to_string();
    facts
}

fn created(id: &str, created: i128) -> Change {
    Change::Created(Box::new(facts(id, created, &format!("/n/{id}"))))
}

fn task(pid: u32, mount_namespace: u32) -> TaskFacts {
    TaskFacts {
        task: Task {
            pid,
            mount_namespace: Some(mount_namespace),
            root_device: None,
            root_path: Vec::new(),
            rootfs: None,
            named: BTreeMap::new(),
        },
        cgroup_path: None,
    }
}

fn task_created(id: &str, pid: u32, mount_namespace: u32) -> Change {
    Change::TaskCreated {
        key: key(id),
        facts: task(pid, mount_namespace),
    }
}

fn task_exited(id: &str, pid: u32, time_boot_ns: u64) -> Change {
    Change::TaskExited {
        key: key(id),
        pid,
        time_boot_ns,
    }
}

fn deleted(id: &str) -> Change {
    Change::Deleted {
        key: key(id),
        time_boot_ns: NOW,
    }
}

fn listed(id: ListingId, containers: Vec<Facts>, tasks: Option<Vec<(Key, TaskFacts)>>) -> Change {
    Change::Listed {
        id,
        containers,
        tasks,
        time_boot_ns: NOW,
    }
}

fn cgroup(id: u64, path: &str) -> Cgroup {
    Cgroup {
        id,
        path: path.as_bytes().to_vec(),
    }
}

/// What became of it, in a line.
fn effects(effects: &[Effect]) -> String {
    let line = |effect: &Effect| match effect {
        Effect::ContainerAdded(container) => format!("added {}", container.id),
        Effect::ContainerIdentified(container) => format!("identified {}", container.id),
        Effect::TaskStarted(container) => format!(
            "started {} {}",
            container.id,
            container
                .task
                .as_ref()
                .map(|task| task.pid)
                .unwrap_or_default()
        ),
        Effect::TaskExited(container) => format!("exited {}", container.id),
        Effect::ContainerRemoved(container) => format!("removed {}", container.id),
        Effect::ForgetCgroup(id) => format!("forget {id}"),
    };
    effects.iter().map(line).collect::<Vec<_>>().join(", ")
}

struct Bench(Inventory);

impl Bench {
    fn connected() -> Self {
        let mut bench = Self(Inventory::new(HOST_NAMESPACE));
        bench.check(Change::Connected, "");
        bench.list(vec![], "");
        bench
    }

    #[track_caller]
    fn check(&mut self, change: Change, expect: &str) {
        assert_eq!(effects(&self.0.apply(change)), expect);
    }

    #[track_caller]
    fn list(&mut self, containers: Vec<Facts>, expect: &str) {
        let request = self.0.begin_listing();
        let id = request.map(|request| request.id).unwrap_or_default();
        let tasks = request
            .is_some_and(|request| request.with_tasks)
            .then(Vec::new);
        self.check(listed(id, containers, tasks), expect);
    }

    #[track_caller]
    fn place(&mut self, id: u64, path: &str, mount_namespace: u32, time: u64, expect: &str) {
        let seen = match self.0.place(&cgroup(id, path), mount_namespace, time) {
            Place::Container { container, by } => {
                format!("{} {} by {by:?}", container.id, container.name)
            }
            Place::Host => "host".to_owned(),
            Place::Unknown => "unknown".to_owned(),
        };
        assert_eq!(seen, expect, "{path}");
    }
}

#[test]
fn a_cgroup_is_the_hosts_only_after_a_listing_that_began_later() {
    let mut bench = Bench::connected();
    assert_eq!(bench.0.begin_listing(), None);
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "unknown");
    let first = bench.0.begin_listing().map(|request| request.id);
    assert_eq!(first, Some(ListingId(2)));
    // Seen while the listing is under way: the next one decides.
    bench.place(2, "/t", HOST_NAMESPACE, NOW, "unknown");
    assert_eq!(bench.0.begin_listing(), None);
    bench.check(listed(ListingId(2), vec![], None), "");
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "host");
    bench.place(2, "/t", HOST_NAMESPACE, NOW, "unknown");
    bench.list(vec![], "");
    bench.place(2, "/t", HOST_NAMESPACE, NOW, "host");
    assert_eq!(bench.0.begin_listing(), None);
    // A path that was cut is never the host's.
    bench.place(3, "…/t", HOST_NAMESPACE, NOW, "unknown");
    bench.list(vec![], "");
    bench.place(3, "…/t", HOST_NAMESPACE, NOW, "unknown");
}

#[test]
fn a_container_corrects_what_was_thought_of_its_cgroup() {
    let mut bench = Bench::connected();
    bench.place(1, "/n/web/x", HOST_NAMESPACE, NOW, "unknown");
    bench.place(2, "/n/webx", HOST_NAMESPACE, NOW, "unknown");
    bench.list(vec![], "");
    bench.place(1, "/n/web/x", HOST_NAMESPACE, NOW, "host");
    bench.check(created("web", 1), "added web, forget 1");
    bench.place(1, "/n/web/x", HOST_NAMESPACE, NOW, "web 1 by Cgroup");
    bench.place(2, "/n/webx", HOST_NAMESPACE, NOW, "host");
}

#[test]
fn a_task_tells_where_its_container_is_below_another_root() {
    let mut bench = Bench::connected();
    bench.place(1, "/node/web", HOST_NAMESPACE, NOW, "unknown");
    bench.list(vec![], "");
    bench.check(
        Change::Created(Box::new(facts("web", 1, "/web"))),
        "added web",
    );
    let mut facts = task(7, 70);
    facts.cgroup_path = Some(b"/node/web/init.scope".to_vec());
    let change = Change::TaskCreated {
        key: key("web"),
        facts,
    };
    bench.check(change, "forget 1, started web 7");
    bench.place(1, "/node/web", HOST_NAMESPACE, NOW, "web 1 by Cgroup");
}

#[test]
fn a_mount_namespace_places_what_its_cgroup_does_not() {
    let mut bench = Bench::connected();
    bench.check(created("web", 1), "added web");
    bench.check(task_created("web", 7, 70), "started web 7");
    bench.place(1, "/s", 70, NOW, "web 1 by MountNamespace");
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "unknown");
    bench.list(vec![facts("web", 1, "/n/web")], "");
    bench.place(1, "/s", 70, NOW, "web 1 by MountNamespace");
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "host");
    bench.check(task_exited("web", 7, NOW + 100), "exited web");
    // The number is given away again.
    bench.place(1, "/s", 70, NOW + 100, "web 1 by MountNamespace");
    bench.place(1, "/s", 70, NOW + 101, "host");
    assert!(bench.0.of_namespace(70, NOW + 100).is_some());
    assert!(bench.0.of_namespace(70, NOW + 101).is_none());
    // A container in the host's mount namespace claims nothing by it.
    bench.check(task_created("web", 8, HOST_NAMESPACE), "started web 8");
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "host");
}

#[test]
fn events_on_the_way_find_a_container_that_is_gone() {
    let mut bench = Bench::connected();
    bench.check(created("web", 1), "added web");
    bench.check(task_created("web", 7, 70), "started web 7");
    bench.place(1, "/n/web", 70, NOW, "web 1 by Cgroup");
    bench.check(deleted("web"), "exited web, removed web");
    bench.place(1, "/n/web", 70, NOW, "web 1 by Cgroup");
    bench.place(2, "/n/web/y", 70, NOW, "web 1 by Cgroup");
    let identified = Change::Identified {
        key: key("web"),
        created_unix_ns: 1,
        identity: Identity::None,
        image_problem: None,
    };
    bench.check(identified, "identified web");
    // The same name again is another container.
    bench.check(created("web", 2), "added web");
    bench.place(1, "/n/web", 70, NOW, "web 1 by Cgroup");
    bench.place(3, "/n/web", 70, NOW, "web 2 by Cgroup");
}

#[test]
fn a_task_waits_for_its_container() {
    let mut bench = Bench::connected();
    bench.check(task_created("web", 7, 70), "");
    bench.check(task_exited("web", 7, 5), "");
    bench.check(created("web", 1), "added web, started web 7, exited web");
    bench.check(task_created("web", 8, 70), "started web 8");
    bench.check(task_created("web", 8, 70), "");
    // A restart whose exit was not told.
    bench.check(task_created("web", 9, 71), "exited web, started web 9");
    bench.check(task_exited("web", 8, 5), "");
}

#[test]
fn a_lost_connection_loses_nothing() {
    let mut bench = Bench::connected();
    for id in ["stays", "goes", "restarts"] {
        bench.check(created(id, 1), &format!("added {id}"));
    }
    bench.check(task_created("stays", 7, 70), "started stays 7");
    bench.check(task_created("restarts", 8, 71), "started restarts 8");
    bench.place(1, "/unseen/a", HOST_NAMESPACE, NOW, "unknown");
    bench.check(Change::Disconnected, "");
    assert_eq!(bench.0.begin_listing(), None);
    bench.place(2, "/n/comes", HOST_NAMESPACE, NOW, "unknown");
    bench.check(Change::Connected, "");
    let request = bench.0.begin_listing();
    assert!(request.is_some_and(|request| request.with_tasks));
    let id = request.map(|request| request.id).unwrap_or_default();
    bench.check(created("later", 5), "added later");
    let all = ["stays", "restarts", "comes"].map(|id| facts(id, 1, &format!("/n/{id}")));
    let tasks = vec![(key("stays"), task(7, 70)), (key("restarts"), task(9, 72))];
    bench.check(
        listed(id, all.to_vec(), Some(tasks)),
        "removed goes, added comes, exited restarts, started restarts 9",
    );
    bench.place(2, "/n/comes", HOST_NAMESPACE, NOW, "comes 1 by Cgroup");
    // Of a time when nobody told, only later events are surely the host's.
    bench.place(1, "/unseen/a", HOST_NAMESPACE, EARLY, "unknown");
    bench.place(1, "/unseen/a", HOST_NAMESPACE, NOW, "host");
    // Created again under the same name while nobody told.
    bench.check(Change::Disconnected, "");
    bench.check(Change::Connected, "");
    let again = vec![
        facts("stays", 2, "/n/stays"),
        facts("restarts", 1, "/n/restarts"),
    ];
    let request = bench.0.begin_listing();
    let id = request.map(|request| request.id).unwrap_or_default();
    let seen = effects(&bench.0.apply(listed(id, again, Some(vec![]))));
    let mut seen: Vec<&str> = seen.split(", ").collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            "added stays",
            "exited restarts",
            "exited stays",
            "removed comes",
            "removed later",
            "removed stays",
        ]
    );
}

#[test]
fn what_ended_during_a_listing_does_not_come_back() {
    let mut bench = Bench(Inventory::new(HOST_NAMESPACE));
    bench.check(Change::Connected, "");
    let id = bench
        .0
        .begin_listing()
        .map(|request| request.id)
        .unwrap_or_default();
    bench.check(deleted("gone"), "");
    bench.check(task_exited("web", 7, 5), "");
    let containers = vec![facts("gone", 1, "/n/gone"), facts("web", 1, "/n/web")];
    let tasks = vec![(key("gone"), task(6, 60)), (key("web"), task(7, 70))];
    bench.check(listed(id, containers, Some(tasks)), "added web");
}

#[test]
fn an_answer_to_a_listing_of_before_still_adds() {
    let mut bench = Bench::connected();
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "unknown");
    let stale = bench
        .0
        .begin_listing()
        .map(|request| request.id)
        .unwrap_or_default();
    bench.check(created("web", 1), "added web");
    bench.check(Change::Disconnected, "");
    bench.check(Change::Connected, "");
    let request = bench.0.begin_listing();
    let containers = vec![facts("new", 1, "/n/new")];
    bench.check(listed(stale, containers, None), "added new");
    bench.place(1, "/s", HOST_NAMESPACE, NOW, "unknown");
    let id = request.map(|request| request.id).unwrap_or_default();
    bench.check(listed(id, vec![], Some(vec![])), "removed web");
}

#[test]
fn at_the_bounds_the_oldest_goes_and_is_counted() {
    let mut bench = Bench::connected();
    bench.check(created("web", 1), "added web");
    bench.place(0, "/n/web", HOST_NAMESPACE, NOW, "web 1 by Cgroup");
    for id in 1..=CGROUPS_MAX as u64 {
        bench.0.place(&cgroup(id, "/s"), HOST_NAMESPACE, 1);
    }
    assert_eq!(bench.0.take_effects(), [Effect::ForgetCgroup(0)]);
    assert_eq!(bench.0.counters().cgroups_forgotten, 1);
    bench.place(0, "/n/web", HOST_NAMESPACE, NOW, "web 1 by Cgroup");
    assert_eq!(bench.0.take_effects(), [Effect::ForgetCgroup(1)]);
    for pid in 0..=WAITING_TASKS_MAX {
        bench.check(task_created(&format!("w{pid}"), 1, 70), "");
    }
    assert_eq!(bench.0.counters().tasks_dropped, 1);
    bench.check(deleted("web"), "removed web");
    for number in 0..graveyard::GRAVES_MAX {
        let id = format!("c{number}");
        bench.0.apply(created(&id, 1));
        bench.0.apply(deleted(&id));
    }
    bench.place(0, "/n/web", HOST_NAMESPACE, NOW, "unknown");
    bench.place(50_000, "/n/c0", HOST_NAMESPACE, NOW, "c0 1 by Cgroup");
}

/// What happens on a node, of which the inventory is told late and in order.
#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Start(u8),
    Exit(u8),
    Delete(u8),
    /// Of the cgroup of a container's present or last creation, or of the host.
    Event(u8, bool),
    HostEvent(u8),
    /// Delivers the next change.
    Deliver,
    /// Takes the listing that was asked for.
    Snapshot,
    Disconnect,
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_u8).prop_map(Step::Create),
        3 => (0..4_u8).prop_map(Step::Start),
        2 => (0..4_u8).prop_map(Step::Exit),
        2 => (0..4_u8).prop_map(Step::Delete),
        4 => (0..4_u8, any::<bool>()).prop_map(|(id, below)| Step::Event(id, below)),
        3 => (0..3_u8).prop_map(Step::HostEvent),
        8 => Just(Step::Deliver),
        3 => Just(Step::Snapshot),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Connect),
    ]
}

/// Container 3 runs below container 0, as with a runtime in a container.
fn path_of(id: u8) -> String {
    if id == 3 {
        "/n/c0/inner/c3".to_owned()
    } else {
        format!("/n/c{id}")
    }
}

#[derive(Default)]
struct Node {
    clock: u64,
    containers: BTreeMap<u8, (i128, Option<u32>)>,
    last: BTreeMap<u8, i128>,
    queue: std::collections::VecDeque<Change>,
    connected: bool,
    asked: Option<ListingRequest>,
    placed: BTreeMap<u64, String>,
}

impl Node {
    fn tell(&mut self, change: Change) {
        if self.connected {
            self.queue.push_back(change);
        }
    }

    fn snapshot(&self, request: ListingRequest) -> Change {
        let containers = self
            .containers
            .iter()
            .map(|(id, (created, _))| facts(&format!("c{id}"), *created, &path_of(*id)))
            .collect();
        let tasks = self
            .containers
            .iter()
            .filter_map(|(id, (_, pid))| {
                let pid = (*pid)?;
                Some((key(&format!("c{id}")), task(pid, 1000 + pid)))
            })
            .collect();
        Change::Listed {
            id: request.id,
            containers,
            tasks: request.with_tasks.then_some(tasks),
            time_boot_ns: self.clock,
        }
    }

    fn step(&mut self, inventory: &mut Inventory, step: &Step) {
        self.clock += 1;
        let name = |id: &u8| format!("c{id}");
        match step {
            Step::Create(id) if !self.containers.contains_key(id) => {
                let time = i128::from(self.clock);
                self.containers.insert(*id, (time, None));
                self.last.insert(*id, time);
                self.tell(Change::Created(Box::new(facts(
                    &name(id),
                    time,
                    &path_of(*id),
                ))));
            }
            Step::Start(id) => {
                let pid = u32::try_from(self.clock).unwrap_or_default();
                if let Some((_, running @ None)) = self.containers.get_mut(id) {
                    *running = Some(pid);
                    self.tell(task_created(&name(id), pid, 1000 + pid));
                }
            }
            Step::Exit(id) => {
                let time = self.clock;
                if let Some((_, running)) = self.containers.get_mut(id)
                    && let Some(pid) = running.take()
                {
                    self.tell(task_exited(&name(id), pid, time));
                }
            }
            Step::Delete(id)
                if self
                    .containers
                    .get(id)
                    .is_some_and(|(_, pid)| pid.is_none()) =>
            {
                self.containers.remove(id);
                let change = Change::Deleted {
                    key: key(&name(id)),
                    time_boot_ns: self.clock,
                };
                self.tell(change);
            }
            Step::Event(id, below) => {
                if let Some(created) = self.last.get(id).copied() {
                    let cgroup_id = u64::try_from(created).unwrap_or_default() * 2;
                    let cgroup_id = cgroup_id + 1000 + u64::from(*below);
                    let path = path_of(*id) + if *below { "/x" } else { "" };
                    // Events carry the time when they happened: here, of the creation.
                    let time = u64::try_from(created).unwrap_or_default();
                    let place = inventory.place(&cgroup(cgroup_id, &path), HOST_NAMESPACE, time);
                    assert_ne!(place, Place::Host, "{path} of creation {created}");
                    match place {
                        Place::Host => {}
                        Place::Unknown => assert_eq!(self.placed.get(&cgroup_id), None, "{path}"),
                        Place::Container { container, by } => {
                            assert_eq!(by, PlacedBy::Cgroup);
                            // Before container 3 is known, its cgroup is one below container 0.
                            let inner = *id == 3 && container.id == "c0";
                            assert!(container.id == name(id) || inner, "{path}: {container:?}");
                            if !inner {
                                let seen = self
                                    .placed
                                    .entry(cgroup_id)
                                    .or_insert_with(|| container.name.clone());
                                assert_eq!(*seen, container.name, "{path} is of one creation");
                            }
                        }
                    }
                }
            }
            Step::HostEvent(number) => {
                let path = format!("/system/s{number}");
                let cgroup = cgroup(u64::from(*number), &path);
                let place = inventory.place(&cgroup, HOST_NAMESPACE, self.clock);
                assert!(
                    !matches!(place, Place::Container { .. }),
                    "{path}: {place:?}"
                );
            }
            Step::Deliver => {
                if let Some(change) = self.queue.pop_front() {
                    inventory.apply(change);
                }
            }
            Step::Snapshot if self.connected => {
                if let Some(request) = self.asked.take() {
                    let change = self.snapshot(request);
                    self.tell(change);
                }
            }
            Step::Disconnect if self.connected => {
                self.tell(Change::Disconnected);
                self.connected = false;
                self.asked = None;
            }
            Step::Connect if !self.connected => {
                self.connected = true;
                self.tell(Change::Connected);
            }
            _ => {}
        }
        if let Some(request) = inventory.begin_listing() {
            self.asked = Some(request);
        }
    }

    fn settle(&mut self, inventory: &mut Inventory) {
        self.step(inventory, &Step::Connect);
        while !self.queue.is_empty() || self.asked.is_some() {
            self.step(inventory, &Step::Snapshot);
            self.step(inventory, &Step::Deliver);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_inventory_agrees_with_the_node(steps in prop::collection::vec(step(), 0..120)) {
        let mut node = Node::default();
        let mut inventory = Inventory::new(HOST_NAMESPACE);
        for step in &steps {
            node.step(&mut inventory, step);
        }
        node.settle(&mut inventory);
        let seen: BTreeSet<(String, String, Option<u32>)> = inventory
            .containers()
            .map(|(container, running)| {
                let pid = container.task.as_ref().filter(|_| running).map(|task| task.pid);
                (container.id.clone(), container.name.clone(), pid)
            })
            .collect();
        let expect: BTreeSet<(String, String, Option<u32>)> = node
            .containers
            .iter()
            .map(|(id, (created, pid))| (format!("c{id}"), created.to_string(), *pid))
            .collect();
        prop_assert_eq!(seen, expect);
        // Every host cgroup that was seen is the host's by now, and every container has its own.
        for number in 0..3 {
            node.step(&mut inventory, &Step::HostEvent(number));
        }
        node.settle(&mut inventory);
        for number in 0..3_u64 {
            let path = format!("/system/s{number}");
            let place = inventory.place(&cgroup(number, &path), HOST_NAMESPACE, u64::MAX);
            prop_assert_eq!(place, Place::Host);
        }
        for id in node.containers.keys() {
            let fresh = cgroup(900_000 + u64::from(*id), &path_of(*id));
            let place = inventory.place(&fresh, HOST_NAMESPACE, u64::MAX);
            let Place::Container { container, .. } = place else {
                return Err(TestCaseError::fail(format!("{place:?}")));
            };
            prop_assert_eq!(&container.id, &format!("c{id}"));
        }
    }
}

#[test]
fn a_new_container_is_pending() {
    let mut inventory = Inventory::new(HOST_NAMESPACE);
    inventory.apply(created("web", 1));
    let kinds: Vec<_> = inventory
        .containers()
        .map(|(container, running)| (container.identity.grade(), container.kind, running))
        .collect();
    assert_eq!(kinds, [("pending", ContainerKind::Container, false)]);
}
