# Before removal ($1 is 0): as the %systemd_preun macro does.
if [ "$1" -eq 0 ] && [ -x /usr/lib/systemd/systemd-update-helper ]; then
	/usr/lib/systemd/systemd-update-helper remove-system-units minisgld.service minisgld.socket || :
fi
