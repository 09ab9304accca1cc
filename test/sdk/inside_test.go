package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// endpoint is where the SDK looks for the daemon in debug mode.
	endpoint = "http://127.0.0.1:49983"
	// patience bounds how long the daemon may take to start, to stop, and its commands to
	// be gone after it; tick is how often one looks.
	patience = 10 * time.Second
	tick     = 10 * time.Millisecond
	// nodePatience bounds one run of Node; it is shorter than limit, so that a run that
	// hangs is reported with the daemon's log.
	nodePatience = limit - 20*time.Second

	userID   = 1000
	teamID   = 1001
	passwdAs = "user:x:1000:1000::%s:/bin/bash\n"
	groupsAs = "user:x:1000:\nteam:x:1001:user\n"
)

// machine is what one file of tests runs on, seen from inside the namespaces.
type machine struct {
	scratch string
	home    string
	log     *os.File // the daemon's
	envd    *exec.Cmd
	exited  chan error
}

// inside prepares the namespaces that this process was started in, runs the daemon and one
// file of tests in them, and returns the exit status of the whole. This process is the first
// of its PID namespace: when it ends, so does everything else.
func inside(file string) int {
	m := &machine{scratch: os.Getenv(envScratch), exited: make(chan error, 1)}
	if err := m.run(file); err != nil {
		fmt.Fprintln(os.Stderr, "sdk:", err)
		if m.log != nil {
			text, _ := os.ReadFile(m.log.Name())
			fmt.Fprintf(os.Stderr, "the daemon's log:\n%s", text)
		}
		return 1
	}
	return 0
}

func (m *machine) run(file string) error {
	if err := m.prepare(); err != nil {
		return fmt.Errorf("prepare the namespaces: %w", err)
	}
	if err := m.startDaemon(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	err := m.runNode(file)
	return errors.Join(err, m.stopDaemon(), nothingLeft())
}

// prepare mounts what must not be the machine's own, makes accounts and brings loopback up.
func (m *machine) prepare() error {
	mounts := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", m.scratch, "tmpfs", 0, "mode=755"},
	}
	for _, mount := range mounts {
		if err := unix.Mount(mount.source, mount.target, mount.kind, mount.flags, mount.data); err != nil {
			return fmt.Errorf("mount %s: %w", mount.target, err)
		}
	}
	m.home = filepath.Join(m.scratch, "home")
	if err := os.Mkdir(m.home, 0o755); err != nil {
		return err
	}
	if err := os.Chown(m.home, userID, userID); err != nil {
		return err
	}
	if err := m.addAccounts("/etc/passwd", fmt.Sprintf(passwdAs, m.home)); err != nil {
		return err
	}
	if err := m.addAccounts("/etc/group", groupsAs); err != nil {
		return err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(loopback)
}

// addAccounts puts a copy with more lines over a file of the system. Accounts that the
// machine has under the same names or numbers are left out.
func (m *machine) addAccounts(path, lines string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var merged strings.Builder
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		_, rest, _ = strings.Cut(rest, ":")
		id, _, _ := strings.Cut(strings.TrimSpace(rest), ":")
		if name != "user" && name != "team" && id != strconv.Itoa(userID) && id != strconv.Itoa(teamID) {
			merged.WriteString(line)
		}
	}
	merged.WriteString(lines)
	copied := filepath.Join(m.scratch, filepath.Base(path))
	if err := os.WriteFile(copied, []byte(merged.String()), 0o644); err != nil {
		return err
	}
	return unix.Mount(copied, path, "", unix.MS_BIND, "")
}

func (m *machine) startDaemon() (err error) {
	if m.log, err = os.Create(filepath.Join(m.scratch, "envd.log")); err != nil {
		return err
	}
	m.envd = exec.Command(os.Getenv(envEnvd))
	m.envd.Env = []string{"PATH=" + os.Getenv("PATH")}
	m.envd.Stdout, m.envd.Stderr = m.log, m.log
	if err := m.envd.Start(); err != nil {
		return err
	}
	go func() { m.exited <- m.envd.Wait() }()
	if err := eventually(func() error { return ask(http.MethodGet, "/health", "") }); err != nil {
		return err
	}
	return ask(http.MethodPost, "/init", `{"defaultUser":"user","envVars":{"FROM_INIT":"yes"}}`)
}

func ask(method, path, body string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, endpoint+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	return nil
}

func (m *machine) runNode(file string) error {
	ctx, cancel := context.WithTimeout(context.Background(), nodePatience)
	defer cancel()
	node := exec.CommandContext(ctx, os.Getenv(envNode), "--test", "--test-reporter=tap", file)
	node.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.scratch, "E2B_DEBUG=true"}
	node.Stdout, node.Stderr = os.Stdout, os.Stderr
	if err := node.Run(); err != nil {
		return fmt.Errorf("node --test %s: %w", file, err)
	}
	return nil
}

// stopDaemon asks the daemon to end, and wants it to end well.
func (m *machine) stopDaemon() error {
	select {
	case err := <-m.exited:
		return fmt.Errorf("the daemon ended during the tests: %w", err)
	default:
	}
	if err := m.envd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-m.exited:
		return err
	case <-time.After(patience):
		return fmt.Errorf("the daemon did not stop within %v", patience)
	}
}

// nothingLeft wants every process gone that the daemon was asked to run.
func nothingLeft() error {
	return eventually(func() error {
		// The first process of a namespace inherits orphans.
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() {
				line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
				return fmt.Errorf("process %d was left behind: %q", pid, line)
			}
		}
		return nil
	})
}

// eventually returns nil as soon as check does, and its last error when that takes too long.
func eventually(check func() error) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			return fmt.Errorf("not within %v: %w", patience, err)
		}
	}
}
