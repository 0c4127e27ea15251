# After an upgrade ($1 is 1 or more): as the %systemd_postun_with_restart macro does.
if [ "$1" -ge 1 ] && [ -x /usr/lib/systemd/systemd-update-helper ]; then
	/usr/lib/systemd/systemd-update-helper mark-restart-system-units minisgld.service minisgld.socket || :
fi
