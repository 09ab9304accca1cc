package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// User is who a process runs as.
type User struct {
	Name     string
	UID, GID uint32
	Groups   []uint32
}

// Spec says what to run.
type Spec struct {
	// Cmd is a path, or a name that is looked up in the PATH of Env.
	Cmd  string
	Args []string
	// Env is the whole environment, as KEY=value.
	Env []string
	// Dir is the working directory, absolute.
	Dir  string
	User User
	// Stdin gives the process a pipe that WriteStdin writes to; else it reads /dev/null.
	Stdin bool
	// Terminal gives the process a terminal of this size instead of pipes, as the
	// controlling terminal of its session; Stdin then means nothing. A size without
	// columns or rows is 80 by 24.
	Terminal *Size
	// Tag is a name to find the process by, if any.
	Tag *string
	// Background is whether nobody waits for the process's end. It is kept for List and
	// changes nothing here.
	Background bool
	// Limit is how long the process may run, from its start, not counting the time in which
	// the sandbox is paused; 0 means for ever.
	Limit time.Duration
	// Requested is how the caller described the process, kept for List.
	Requested Requested
}

// Requested is a process as its caller asked for it, before defaults.
type Requested struct {
	Envs map[string]string
	Dir  *string
}

// defaultPath is searched when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Start starts a process and subscribes to it before it can print anything.
func (m *Manager) Start(_ context.Context, spec Spec) (*Process, *Subscription, error) {
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	path, err := findExecutable(spec.Cmd, spec.Dir, spec.Env)
	if err != nil {
		return nil, nil, err
	}
	files, err := spec.open()
	if err != nil {
		return nil, nil, err
	}
	defer files.closeChild()
	if !m.enter() {
		files.closeParent()
		return nil, nil, fault.New(fault.HostUnavailable, "the sandbox is shutting down")
	}
	pid, exited, err := m.reaper.launch(func() (int, error) {
		return m.spawner.forkExec(path, append([]string{spec.Cmd}, spec.Args...), spec.attributes(files))
	})
	if err != nil {
		m.wg.Done()
		files.closeParent()
		return nil, nil, m.startError(err, &spec)
	}
	spec.Env = nil // as long as all the rest, and of no more use
	p := &Process{
		manager: m, spec: spec, pid: pid, started: time.Now(), exited: exited,
		files: files, input: newInput(files), gone: make(chan struct{}),
	}
	if spec.Terminal != nil {
		p.output.resize(*spec.Terminal)
	}
	sub := p.Subscribe()
	m.add(p)
	go p.run()
	return p, sub, nil
}

// enter counts a process that is about to start, unless the Manager is closed.
func (m *Manager) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Add(1)
	return true
}

// open opens what the process reads and writes.
func (s *Spec) open() (*files, error) {
	if s.Terminal == nil {
		pipes, err := openPipes(s.Stdin, s.User)
		switch {
		case outOfFiles(err):
			return nil, noFiles(err)
		case err != nil:
			return nil, fault.Wrap(err, fault.Internal, "the pipes of the command could not be made")
		}
		return pipes, nil
	}
	if s.Terminal.Cols == 0 || s.Terminal.Rows == 0 {
		s.Terminal = &defaultSize
	}
	terminal, err := openTerminal(*s.Terminal, s.User)
	switch {
	case outOfFiles(err):
		return nil, noFiles(err)
	case errors.Is(err, unix.ENOSPC):
		return nil, fault.Wrap(err, fault.RateLimited, "the sandbox has no more terminals; end some and try again")
	case err != nil:
		return nil, fault.Wrap(err, fault.Internal, "the terminal of the command could not be made")
	}
	return terminal, nil
}

func (s *Spec) attributes(files *files) *syscall.ProcAttr {
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{uintptr(files.child[0]), uintptr(files.child[1]), uintptr(files.child[2])},
		// A session of its own: signals reach the whole group and nothing else.
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: files.master != nil},
	}
	// Setting even one's own identity needs a right that only root has.
	if unix.Geteuid() == 0 || int(s.User.UID) != unix.Geteuid() {
		attr.Sys.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID, Groups: s.User.Groups}
	}
	return attr
}

// check refuses what execve cannot express, with words that say so.
func (s *Spec) check() error {
	if s.Cmd == "" {
		return fault.New(fault.InvalidRequest, "the command is empty; say what to run")
	}
	if len(s.Cmd) >= unix.PathMax {
		return fault.New(fault.InvalidRequest, "the command's name is too long; arguments go into args")
	}
	for _, text := range append([]string{s.Cmd, s.Dir}, s.Args...) {
		if strings.ContainsRune(text, 0) {
			return fault.New(fault.InvalidRequest, "the command, its arguments and its cwd must not contain NUL bytes")
		}
	}
	for _, pair := range s.Env {
		key, _, _ := strings.Cut(pair, "=")
		if key == "" || strings.ContainsRune(pair, 0) {
			return fault.New(fault.InvalidRequest,
				"environment variable %q is not possible: names must not be empty or contain '=', and nothing may contain NUL bytes", key)
		}
	}
	info, err := os.Stat(s.Dir)
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		return fault.New(fault.InvalidRequest, "cwd is too long")
	case err != nil:
		return fault.New(fault.InvalidRequest, "cwd '%s' does not exist", s.Dir)
	case !info.IsDir():
		return fault.New(fault.InvalidRequest, "cwd '%s' is not a directory", s.Dir)
	}
	return nil
}

// startError says why a process could not be started.
func (m *Manager) startError(err error, spec *Spec) error {
	switch {
	case errors.Is(err, unix.EAGAIN) && m.limit > 0:
		return fault.Wrap(err, fault.RateLimited,
			"the sandbox has reached its limit of %d processes; end some and try again", m.limit)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return fault.Wrap(err, fault.RateLimited, "the sandbox has no room for another process; end some and try again")
	case outOfFiles(err):
		return noFiles(err)
	case errors.Is(err, unix.ENOENT):
		return fault.Wrap(err, fault.InvalidRequest,
			"command '%s' cannot be run: its interpreter, its loader or cwd '%s' does not exist", spec.Cmd, spec.Dir)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fault.Wrap(err, fault.InvalidRequest,
			"user '%s' may not run command '%s' or not enter cwd '%s'", spec.User.Name, spec.Cmd, spec.Dir)
	case errors.Is(err, unix.ENOEXEC):
		return fault.Wrap(err, fault.InvalidRequest,
			"command '%s' is not a program for this machine; a script needs a first line such as #!/bin/sh", spec.Cmd)
	case errors.Is(err, unix.E2BIG):
		return fault.Wrap(err, fault.InvalidRequest, "the arguments and the environment of the command are too long")
	}
	return fault.Wrap(err, fault.InvalidRequest, "command '%s' could not be started: %v", spec.Cmd, err)
}

// outOfFiles says whether err is that the daemon, or the system, can open no more files.
// Each process and each connection takes some of the daemon's.
func outOfFiles(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

func noFiles(err error) error {
	return fault.Wrap(err, fault.RateLimited,
		"too many processes and connections are open in the sandbox for another command; end some and try again")
}

// findExecutable returns the path of the program that cmd names.
func findExecutable(cmd, dir string, env []string) (string, error) {
	if strings.Contains(cmd, "/") {
		path := cmd
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, cmd)
		}
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, unix.ENAMETOOLONG):
			return "", fault.New(fault.InvalidRequest, "the command's name is too long")
		case err != nil:
			return "", fault.New(fault.InvalidRequest, "command '%s' not found: no such file", cmd)
		case !executable(info):
			return "", fault.New(fault.InvalidRequest, "command '%s' is not an executable file", cmd)
		}
		return path, nil
	}
	search := defaultPath
	for _, pair := range env {
		if value, ok := strings.CutPrefix(pair, "PATH="); ok {
			search = value
		}
	}
	for _, folder := range filepath.SplitList(search) {
		if !filepath.IsAbs(folder) {
			folder = filepath.Join(dir, folder)
		}
		path := filepath.Join(folder, cmd)
		if info, err := os.Stat(path); err == nil && executable(info) {
			return path, nil
		}
	}
	return "", fault.New(fault.InvalidRequest, "command '%s' not found in PATH (%.*s)", cmd, unix.PathMax, search)
}

// executeBits are the permission bits of which one must be set.
const executeBits = 0o111

func executable(info os.FileInfo) bool {
	return info.Mode().IsRegular() && info.Mode().Perm()&executeBits != 0
}
