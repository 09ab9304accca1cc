package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// System says where an identity is written down for the programs of the sandbox to find.
// What is empty is left alone: on a machine that is not a sandbox that is all of it.
type System struct {
	// RunDir gets the files sandbox-id and template-id.
	RunDir string
	// HostsPath and ResolvConfPath are files in the formats of hosts(5) and resolv.conf(5).
	HostsPath, ResolvConfPath string
	// Trust is where the certificates of authorities are.
	Trust TrustStore
	// MachineIDPath is the file of machine-id(5).
	MachineIDPath string
	// SSHDir holds the host keys of the SSH server, if there is one, and SSHPidPath is
	// where that one says its process id.
	SSHDir, SSHPidPath string
	// SetHostname makes the kernel know the name.
	SetHostname bool
	// SetClock sets the system's clock, such as the function of that name; nil leaves it.
	SetClock func(time.Time) error
}

// clockTolerance is how far the clock may be from an update's time, which has been on its
// way for a while.
const clockTolerance = time.Second

// SetClock sets the clock of the system. Where the clock is the host's, as it is in
// gVisor, nobody may do that and nobody needs to: it is right. That is no error.
func SetClock(now time.Time) error {
	tv := unix.NsecToTimeval(now.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil && !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// maxHostname is what sethostname(2) takes, in bytes.
const maxHostname = 64

func checkSystem(up Update) error {
	if len(up.Hostname) > maxHostname {
		return fault.New(fault.InvalidRequest, "the hostname is longer than %d bytes", maxHostname)
	}
	for _, r := range up.Hostname {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' {
			return fault.New(fault.InvalidRequest, "hostname %q has a character that is not a letter, a digit, '-' or '.'", up.Hostname)
		}
	}
	for _, server := range up.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			return fault.New(fault.InvalidRequest, "nameserver %q is not an IP address", server)
		}
	}
	if up.EventsIP != "" {
		if ip, err := netip.ParseAddr(up.EventsIP); err != nil || ip.Zone() != "" {
			return fault.New(fault.InvalidRequest, "hyperloopIP %q is not an IP address", up.EventsIP)
		}
	}
	if up.CABundle != "" {
		if _, err := parseAuthorities(up.CABundle); err != nil {
			return err
		}
	}
	return nil
}

// apply writes down what up says, as much of it as possible, and returns what failed.
func (s System) apply(up Update) []error {
	var failed []error
	note := func(action string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", action, err))
		}
	}
	if s.SetClock != nil && !up.Timestamp.IsZero() && time.Since(up.Timestamp).Abs() > clockTolerance {
		note("set the clock", s.SetClock(up.Timestamp))
	}
	if s.SetHostname && up.Hostname != "" {
		note("set the hostname", setHostname(up.Hostname))
	}
	note("write the hosts file", s.writeHosts(up))
	if s.ResolvConfPath != "" && len(up.Nameservers) > 0 {
		var conf strings.Builder
		for _, server := range up.Nameservers {
			fmt.Fprintf(&conf, "nameserver %s\n", server)
		}
		note("write the resolver's file", replaceFile(s.ResolvConfPath, conf.String()))
	}
	if s.RunDir == "" {
		return failed
	}
	for name, id := range map[string]string{"sandbox-id": up.SandboxID, "template-id": up.TemplateID} {
		if id != "" {
			note("make the run directory", os.MkdirAll(s.RunDir, dirMode))
			note("write "+name, replaceFile(filepath.Join(s.RunDir, name), id+"\n"))
		}
	}
	return failed
}

func setHostname(name string) error {
	if now, err := os.Hostname(); err == nil && now == name {
		return nil
	}
	return unix.Sethostname([]byte(name))
}

// Modes of what is made here: to be read by everybody.
const (
	fileMode = 0o644
	dirMode  = 0o755
)

// replaceFile writes content so that a reader sees the old file or the new one. Where the
// file cannot be replaced, being a mount of its own, it is written in place.
func replaceFile(path, content string) error {
	if old, err := readFile(path); err == nil && string(old) == content {
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".wrenn-identity-*")
	if err != nil {
		return overwrite(path, content)
	}
	_, err = temp.WriteString(content)
	err = errors.Join(err, temp.Chmod(fileMode), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err == nil {
		return nil
	}
	_ = os.Remove(temp.Name())
	if errors.Is(err, unix.EBUSY) {
		return overwrite(path, content)
	}
	return err
}
