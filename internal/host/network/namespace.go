package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// threadNamespace is the calling thread's network namespace. The process's own name for
// it, /proc/self, would be the main thread's.
const threadNamespace = "/proc/thread-self/ns/net"

// namespace is an open network namespace. Close it.
type namespace struct {
	handle netns.NsHandle
	routes *netlink.Handle // requests go to the namespace, from whichever thread
}

// Close lets go of the namespace, which lives on as long as it has a name.
func (ns *namespace) Close() {
	ns.routes.Close()
	_ = ns.handle.Close()
}

// createNamespace makes a network namespace without IPv6 and mounts it at path.
func createNamespace(path string) (*namespace, error) {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	ns, err := onOwnThread(func() (*namespace, error) { return newNamespaceHere(path) })
	if err != nil {
		return nil, errors.Join(err, removeNamespace(path))
	}
	return ns, nil
}

// newNamespaceHere moves the calling thread into a new namespace mounted at path.
func newNamespaceHere(path string) (*namespace, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount(threadNamespace, path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", path, err)
	}
	for _, which := range []string{"all", "default"} {
		if err := disableIPv6(which); err != nil {
			return nil, fmt.Errorf("disable IPv6: %w", err)
		}
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	handle, err := netns.GetFromPath(path)
	if err != nil {
		routes.Close()
		return nil, fmt.Errorf("open: %w", err)
	}
	return &namespace{handle: handle, routes: routes}, nil
}

// openNamespace opens the namespace that is mounted at path.
func openNamespace(path string) (*namespace, error) {
	handle, err := netns.GetFromPath(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	routes, err := netlink.NewHandleAt(handle, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", path, err), handle.Close())
	}
	return &namespace{handle: handle, routes: routes}, nil
}

// onOwnThread runs f, which may change its thread's network namespace, on a thread that
// nothing else uses meanwhile, and changes it back. If that fails the thread is lost
// rather than given to other goroutines, whose sockets would land in the wrong namespace.
func onOwnThread[T any](f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.GetFromPath(threadNamespace)
		if err != nil {
			runtime.UnlockOSThread()
			done <- result{err: err}
			return
		}
		var r result
		r.value, r.err = f()
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close()
		done <- r
	}()
	r := <-done
	return r.value, r.err
}

// removeNamespace takes the name away; the namespace dies with its last process. Whatever
// step a crash interrupted, this finishes.
func removeNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return removeFile(path)
		}
		if err != nil {
			return &fs.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

// inNamespace opens the slot's namespace for f.
func inNamespace(ctx context.Context, slot Slot, f func(*namespace) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ns, err := openNamespace(slot.Namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	return f(ns)
}
