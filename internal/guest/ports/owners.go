package ports

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// owner is a process that holds a socket.
type owner struct {
	pid  int
	name string
}

// findOwners returns the processes that hold the sockets, by the sockets' inodes. It walks
// the open files of every process, lowest id first, until it has seen all: of a server and
// the workers that it forked, the server counts. The walk is long on a busy machine, so it
// is only done when there is something new to find out.
func findOwners(ctx context.Context, listeners []listener) (map[uint64]owner, error) {
	missing := make(map[uint64]struct{}, len(listeners))
	for _, l := range listeners {
		missing[l.inode] = struct{}{}
	}
	found := make(map[uint64]owner, len(missing))
	if len(missing) == 0 {
		return found, nil
	}
	pids, err := processes()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "the processes of the sandbox cannot be listed")
	}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, inode := range sockets(pid) {
			if _, wanted := missing[inode]; !wanted {
				continue
			}
			delete(missing, inode)
			found[inode] = owner{pid: pid, name: processName(pid)}
		}
		if len(missing) == 0 {
			break
		}
	}
	return found, nil
}

// processes returns the ids of all processes, in order.
func processes() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// sockets returns the inodes of the sockets that a process has open; none when it has
// ended or may not be looked at.
func sockets(pid int) []uint64 {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var inodes []uint64
	for _, name := range names {
		link, err := os.Readlink(path + "/" + name)
		if err != nil {
			continue
		}
		number, isSocket := strings.CutPrefix(link, "socket:[")
		if !isSocket {
			continue
		}
		if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64); err == nil {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}

func processName(pid int) string {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(name))
}
