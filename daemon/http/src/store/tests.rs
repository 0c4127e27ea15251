use super::*;

/// One that has this id, and is as JSON what was promised for it.
struct Sketch(String, bool);

impl Begun for Sketch {
    fn id(&self) -> &str {
        &self.0
    }

    fn json(&self, is_cancelled: bool) -> Vec<u8> {
        is_cancelled.to_string().into_bytes()
    }
}

fn owner(name: &str) -> Owner {
    Owner::Name(name.into())
}

fn keep(store: &Store, id: &str, owner: &Owner, bytes: usize) {
    let answer =
        Answered { response: "r".repeat(bytes), input: String::new(), output: String::new() };
    store.keep(id, owner.clone(), answer);
}

fn has(store: &Store, id: &str) -> bool {
    store.inner().kept.contains_key(id)
}

/// One is begun; whether it will be kept.
fn begin(store: &Arc<Store>, id: &str, owner: &Owner, bytes: usize) -> (bool, Ticket, Halt) {
    let input = Some("i".repeat(bytes));
    let (begun, ticket, halt) =
        store.begin(owner.clone(), input, |is_kept| Sketch(id.to_owned(), is_kept));
    (begun.1, ticket, halt)
}

fn check(store: &Store) {
    let inner = store.inner();
    assert_eq!(inner.uses.len(), inner.kept.len());
    let held = |running: &Running| running.input.as_ref().map_or(0, String::len);
    let bytes = inner.kept.values().map(|kept| kept.answer.bytes()).sum::<usize>()
        + inner.running.values().map(held).sum::<usize>();
    assert_eq!(inner.bytes, bytes);
    assert!(bytes <= BYTES_MAX && inner.kept.len() <= RESPONSES_MAX, "{bytes}");
    assert_eq!(inner.owners.values().map(|owned| owned.bytes).sum::<usize>(), bytes);
    assert_eq!(
        inner.owners.values().map(|owned| owned.uses.len()).sum::<usize>(),
        inner.uses.len()
    );
    for (used, id) in &inner.uses {
        let kept = &inner.kept[id];
        assert_eq!(kept.used, *used);
        assert!(inner.owners[&kept.owner].uses.contains(used));
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_used_for_an_hour_is_gone() {
    let (store, all) = (Store::default(), Owner::Anybody);
    keep(&store, "a", &all, 1);
    keep(&store, "b", &all, 1);
    tokio::time::advance(AGE_MAX / 2).await;
    store.find("a", &all).unwrap();
    tokio::time::advance(AGE_MAX / 2).await;
    assert!(store.find("a", &all).is_ok());
    let error = store.find("b", &all).unwrap_err();
    assert_eq!((error.status.as_u16(), error.code), (404, Some("response_not_found")));
    assert!(!has(&store, "b"), "its memory is free");
    check(&store);
    tokio::time::advance(AGE_MAX).await;
    assert!(store.find("a", &all).is_err());
    assert!(store.inner().owners.is_empty());
}

#[tokio::test]
async fn what_was_used_least_recently_gives_way() {
    let (store, all) = (Store::default(), Owner::Anybody);
    for number in 0..RESPONSES_MAX {
        keep(&store, &number.to_string(), &all, 1);
    }
    store.find("0", &all).unwrap();
    keep(&store, "new", &all, 1);
    assert!(has(&store, "0") && has(&store, "new") && !has(&store, "1"));
    check(&store);
    let store = Store::default();
    let large = 3 * CONVERSATION_BYTES_MAX;
    for number in 0..BYTES_MAX / large {
        keep(&store, &number.to_string(), &all, large);
    }
    assert!(has(&store, "0"));
    keep(&store, "new", &all, large);
    assert!(!has(&store, "0") && has(&store, "1") && has(&store, "new"));
    keep(&store, "huge", &all, large + 1);
    assert!(!has(&store, "huge") && has(&store, "1"));
    keep(&store, "new", &all, 1);
    check(&store);
}

#[tokio::test]
async fn whoever_has_most_gives_way() {
    let (ann, bob) = (owner("ann"), owner("bob"));
    for (most, bytes) in [(RESPONSES_MAX, 1), (BYTES_MAX >> 20, 1 << 20)] {
        let store = Store::default();
        keep(&store, "bob", &bob, bytes);
        for number in 0..2 * most {
            keep(&store, &number.to_string(), &ann, bytes);
        }
        assert!(has(&store, "bob"), "ann's own gave way");
        assert!(has(&store, &(2 * most - 1).to_string()) && !has(&store, "0"));
        keep(&store, "bob 2", &bob, bytes);
        assert!(has(&store, "bob") && has(&store, "bob 2"));
        check(&store);
    }
}

#[tokio::test]
async fn what_is_being_generated_takes_room_until_it_is_over() {
    let (store, ann, bob) = (Arc::new(Store::default()), owner("ann"), owner("bob"));
    keep(&store, "ann", &ann, 1 << 20);
    keep(&store, "bob", &bob, 1 << 20);
    let mut running = Vec::new();
    let places = BYTES_MAX / CONVERSATION_BYTES_MAX;
    for number in 0..2 * places {
        let (is_kept, ticket, _) = begin(&store, &number.to_string(), &ann, CONVERSATION_BYTES_MAX);
        assert_eq!(is_kept, number < places - 1, "{number}");
        running.push(ticket);
        check(&store);
    }
    assert!(!has(&store, "ann") && has(&store, "bob"), "ann's own gives way, not that of bob");
    assert!(!running.pop().unwrap().is_kept());
    running.remove(0).keep("r".into(), "o".into());
    assert!(has(&store, "0"));
    check(&store);
    drop(running);
    assert_eq!(store.inner().bytes, (1 << 20) + CONVERSATION_BYTES_MAX + 2);
    check(&store);
}

#[tokio::test]
async fn one_that_is_deleted_while_it_is_generated_is_not_kept() {
    let (store, ann) = (Arc::new(Store::default()), owner("ann"));
    let (is_kept, ticket, mut halt) = begin(&store, "a", &ann, 5);
    assert!(is_kept && ticket.is_kept());
    assert_eq!(store.forget("a", &owner("bob")).unwrap_err(), gone("a"));
    store.forget("a", &ann).unwrap();
    assert_eq!(store.inner().bytes, 0);
    assert!(store.running("a", &ann).is_none());
    assert_eq!(store.forget("a", &ann).unwrap_err(), gone("a"));
    assert_eq!(store.cancel("a", &ann).unwrap_err(), gone("a"));
    assert!(halt.try_recv().is_err(), "it goes on");
    assert!(!ticket.is_kept());
    ticket.keep("r".into(), "o".into());
    assert!(!has(&store, "a") && store.inner().running.is_empty());
    check(&store);
}

#[tokio::test]
async fn one_that_is_over_is_kept_from_the_same_moment_on() {
    let (store, ann) = (Arc::new(Store::default()), owner("ann"));
    let (_, ticket, _) = begin(&store, "a", &ann, 5);
    assert!(store.running("a", &ann).is_some());
    ticket.keep("r".into(), "o".into());
    assert!(store.running("a", &ann).is_none());
    assert_eq!(store.cancel("a", &ann).unwrap_err().status, 400, "it is over");
    assert_eq!(store.find("a", &ann).unwrap().input, "iiiii");
    drop(begin(&store, "b", &ann, 5));
    assert!(store.find("b", &ann).is_err(), "it broke off");
    check(&store);
}

#[tokio::test]
async fn another_key_hears_nothing() {
    let store = Store::default();
    let ann = owner("alice");
    for ann in [ann, Owner::Key([1; 32])] {
        keep(&store, "a", &ann, 1);
        for other in [Owner::Anybody, owner("bob"), Owner::Key([2; 32])] {
            assert_eq!(store.find("a", &other).unwrap_err(), gone("a"));
            assert_eq!(store.forget("a", &other).unwrap_err(), gone("a"));
            assert_eq!(store.cancel("a", &other).unwrap_err(), gone("a"));
        }
        assert_eq!(store.cancel("a", &ann).unwrap_err().status, 400);
        store.forget("a", &ann).unwrap();
        assert!(store.find("a", &ann).is_err());
        check(&store);
    }
}
