# After installation ($1 is 1) and upgrade (2): as the %sysusers, %tmpfiles and %systemd_post macros do.
systemd-sysusers minisgld.conf || :
if [ -d /run/systemd/system ]; then
	systemd-tmpfiles --create minisgld.conf || :
fi
if [ "$1" -eq 1 ] && [ -x /usr/lib/systemd/systemd-update-helper ]; then
	/usr/lib/systemd/systemd-update-helper install-system-units minisgld.service minisgld.socket || :
fi
