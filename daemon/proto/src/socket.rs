//! Where the admin socket is when nobody says: one answer for the daemon, which takes the first
//! place, and for `minisglctl`, which looks at one after the other.

use std::path::{Path, PathBuf};

/// A folder for the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    /// Permissions of the folder.
    pub mode: u32,
    /// The user whose folder it is. In another's, somebody else could pose as the daemon.
    pub owner: u32,
}

impl Place {
    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }
}

/// The places for effective user `uid` with `$XDG_RUNTIME_DIR` as given, best first, at least one:
/// for a user their own, then the system's; for root the system's alone.
pub fn places(uid: u32, runtime_dir: Option<&Path>) -> Vec<Place> {
    let system = Place { folder: "/run/minisgld".into(), mode: 0o755, owner: 0 };
    if uid == 0 {
        return vec![system];
    }
    // A relative path is to be ignored (XDG Base Directory Specification).
    let folder = match runtime_dir.filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("minisgld"),
        None => format!("/tmp/minisgld-{uid}").into(),
    };
    vec![Place { folder, mode: 0o700, owner: uid }, system]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(uid: u32, runtime_dir: Option<&str>) -> Vec<String> {
        let places = places(uid, runtime_dir.map(Path::new));
        places.iter().map(|place| place.socket().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn users_have_a_place_of_their_own_before_the_systems() {
        let system = "/run/minisgld/admin.sock";
        assert_eq!(sockets(0, Some("/run/user/0")), [system]);
        let own = "/run/user/7/minisgld/admin.sock";
        assert_eq!(sockets(7, Some("/run/user/7")), [own, system]);
        for no_place in [None, Some(""), Some("run")] {
            assert_eq!(sockets(7, no_place), ["/tmp/minisgld-7/admin.sock", system]);
        }
        assert_eq!(places(7, None)[0].mode, 0o700);
    }
}
