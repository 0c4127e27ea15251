//! Who may use the admin socket, and who does.
//!
//! ```text
//!   root, the daemon's user ──> change          [admin] admin_users ──> change
//!   the daemon's group      ──> read            everybody else      ──> nothing
//! ```
//!
//! The kernel names the peer of a connection (`SO_PEERCRED`), the user database its name and groups.
//!
//! Owns: the list of users who may change models, which can be exchanged while the daemon runs. Must never: trust
//! a word of the caller.

use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use minisgl_proto::admin::{AdminError, AdminErrorCode};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgrouplist};

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id when it connected.
    pub pid: Option<i32>,
}

impl Peer {
    /// Root or the daemon's own user.
    pub fn is_operator(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }
}

/// A peer and what the user database knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// As the kernel says.
    pub peer: Peer,
    /// Name of the user, if it has one.
    pub user: Option<String>,
    /// Whether the user is in the daemon's group.
    pub is_member: bool,
}

impl Caller {
    /// Logs what it does to which model.
    pub(crate) fn note(&self, action: &str, model: &str) {
        let Peer { uid, pid, .. } = self.peer;
        tracing::info!(user = self.name(), uid, pid, action, model, "admin");
    }

    /// Asks the user database, which may block.
    pub fn identify(peer: Peer) -> Caller {
        let own = getegid();
        let user = User::from_uid(Uid::from_raw(peer.uid)).ok().flatten();
        let groups = user.as_ref().and_then(|user| {
            let name = CString::new(user.name.as_str()).ok()?;
            getgrouplist(&name, Gid::from_raw(peer.gid)).ok()
        });
        let is_member = peer.gid == own.as_raw()
            || user.as_ref().is_some_and(|user| user.gid == own)
            || groups.is_some_and(|all| all.contains(&own));
        Caller { peer, user: user.map(|user| user.name), is_member }
    }

    /// The user's name, or its number where it has none.
    pub fn name(&self) -> String {
        self.user.clone().unwrap_or_else(|| self.peer.uid.to_string())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "user {user} ({})", self.peer.uid),
            None => write!(f, "user {}", self.peer.uid),
        }
    }
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Load, unload, flush.
    Change,
}

/// The rules. Clones are the same rules.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<RwLock<Vec<String>>>);

impl Access {
    /// Rules by which `admin_users` (names, or numbers of users without one) may change models.
    pub fn new(admin_users: Vec<String>) -> Self {
        Access(Arc::new(RwLock::new(admin_users)))
    }

    /// Exchanges the list, also for connections that are open.
    pub fn set_admin_users(&self, admin_users: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = admin_users;
    }

    /// What `caller` may do.
    pub fn right(&self, caller: &Caller) -> Right {
        let listed = |uid: &str| {
            let users = self.0.read().unwrap_or_else(PoisonError::into_inner);
            users.iter().any(|user| Some(user) == caller.user.as_ref() || user == uid)
        };
        if caller.peer.is_operator() || listed(&caller.peer.uid.to_string()) {
            Right::Change
        } else if caller.is_member {
            Right::Read
        } else {
            Right::None
        }
    }

    /// The caller, if it has the right to `action`; a refusal is in the log.
    ///
    /// # Errors
    /// `Forbidden`, with who may and how to become one of them.
    pub fn check<'a>(
        &self,
        caller: Option<&'a Caller>,
        needed: Right,
        action: &str,
    ) -> Result<&'a Caller, AdminError> {
        let Some(caller) = caller else {
            tracing::warn!(action, "refused: the caller is unknown");
            return Err(forbidden(format!("somebody unknown may not {action}; use the socket")));
        };
        if self.right(caller) >= needed {
            return Ok(caller);
        }
        let Peer { uid, pid, .. } = caller.peer;
        tracing::warn!(user = caller.name(), uid, pid, action, "refused: not allowed");
        let (daemon, name) = (own_user(), caller.name());
        Err(forbidden(match needed {
            Right::Change => format!(
                "{caller} may not {action}: only root, user {daemon} and [admin] admin_users may; try sudo, or \
                 add \"{name}\" to admin_users and reload the daemon"
            ),
            Right::Read | Right::None => format!(
                "{caller} may not {action}: only root, user {daemon}, [admin] admin_users and members of group \
                 {group} may; try sudo, or: usermod -aG {group} {name}",
                group = own_group()
            ),
        }))
    }
}

fn forbidden(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Forbidden, message }
}

fn own_user() -> String {
    let (uid, name) = (geteuid(), |user: User| user.name);
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), name)
}

fn own_group() -> String {
    let (gid, name) = (getegid(), |group: Group| group.name);
    Group::from_gid(gid).ok().flatten().map_or_else(|| gid.to_string(), name)
}

/// Users of the list that the user database does not know: misspelt, most likely. May block.
pub fn unknown_users(admin_users: &[String]) -> Vec<&str> {
    let known = |user: &str| match user.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten().is_some(),
        Err(_) => User::from_name(user).ok().flatten().is_some(),
    };
    admin_users.iter().map(String::as_str).filter(|user| !known(user)).collect()
}

/// `router` for those alone who may at least read.
pub fn guard(router: Router, access: Access) -> Router {
    router.layer(middleware::from_fn_with_state(access, may_read))
}

async fn may_read(State(access): State<Access>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    match access.check(caller, Right::Read, "use the admin socket") {
        Ok(_) => next.run(request).await,
        Err(error) => crate::reply::refuse(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32, user: Option<&str>, is_member: bool) -> Caller {
        let peer = Peer { uid, gid: 4242, pid: Some(1) };
        Caller { peer, user: user.map(str::to_owned), is_member }
    }

    /// A user id that is neither root's nor ours.
    fn other() -> u32 {
        geteuid().as_raw() + 4242
    }

    #[test]
    fn root_and_the_daemons_user_change_the_group_reads_and_others_do_nothing() {
        let access = Access::default();
        assert_eq!(access.right(&caller(0, Some("root"), false)), Right::Change);
        assert_eq!(access.right(&caller(geteuid().as_raw(), None, false)), Right::Change);
        assert_eq!(access.right(&caller(other(), Some("ann"), true)), Right::Read);
        assert_eq!(access.right(&caller(other(), Some("ann"), false)), Right::None);
    }

    #[test]
    fn listed_users_change_by_name_or_number_until_they_leave_the_list() {
        let access = Access::new(vec!["ann".into(), other().to_string()]);
        assert_eq!(access.right(&caller(other() + 1, Some("ann"), true)), Right::Change);
        assert_eq!(access.right(&caller(other(), None, false)), Right::Change);
        assert_eq!(access.right(&caller(other() + 1, Some("ann2"), true)), Right::Read);
        access.clone().set_admin_users(vec![]);
        assert_eq!(access.right(&caller(other() + 1, Some("ann"), true)), Right::Read);
    }

    #[test]
    fn a_refusal_names_the_user_the_action_and_the_remedy() {
        let access = Access::default();
        let ann = caller(other(), Some("ann"), true);
        let refused = access.check(Some(&ann), Right::Change, "load models").unwrap_err();
        assert_eq!(refused.code, AdminErrorCode::Forbidden);
        for words in [&format!("user ann ({})", other()), "may not load models", "add \"ann\""] {
            assert!(refused.message.contains(words), "{refused}");
        }
        let bob = caller(other(), Some("bob"), false);
        let refused = access.check(Some(&bob), Right::Read, "read").unwrap_err();
        let remedy = format!("usermod -aG {} bob", own_group());
        assert!(refused.message.contains(&remedy), "{refused}");
        assert!(access.check(None, Right::Read, "read").is_err());
        assert!(access.check(Some(&ann), Right::Read, "read").is_ok());
    }

    #[test]
    fn the_user_database_is_asked_for_names_and_groups() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let own = Caller::identify(Peer { uid, gid, pid: None });
        assert!(own.is_member);
        assert_eq!(own.user, User::from_uid(geteuid()).unwrap().map(|user| user.name));
        let nobody = Caller::identify(Peer { uid: 4_242_424, gid: gid + 4242, pid: None });
        assert_eq!((nobody.user.as_deref(), nobody.is_member), (None, false));
        // A user is a member by the database, whatever group the process has.
        let elsewhere = Caller::identify(Peer { uid, gid: gid + 4242, pid: None });
        let members = Group::from_gid(getegid()).unwrap().map_or_else(Vec::new, |group| group.mem);
        let by_database = User::from_uid(geteuid())
            .unwrap()
            .is_some_and(|user| user.gid == getegid() || members.contains(&user.name));
        assert_eq!(elsewhere.is_member, by_database);
    }

    #[test]
    fn a_misspelt_user_is_noticed() {
        let users = ["root".to_owned(), "0".to_owned(), "no-such-user".to_owned()];
        assert_eq!(unknown_users(&users), ["no-such-user"]);
    }
}
