package network

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// removals takes slots down that are no longer used, those of several callers in one go:
// the kernel takes tens of milliseconds to delete a link, under a lock that every other
// change of links needs, and hardly longer to delete many at once. The zero value with a
// group and forget is ready to use.
type removals struct {
	// group is the number of the link group that links are put into to be deleted. It is
	// the instance's own, and no default.
	group uint32
	// forget drops the connections of the guests of these indexes.
	forget func(indexes ...int)

	mu      sync.Mutex
	waiting []removal
	running bool
}

// removal is a slot to be taken down and where to tell the outcome.
type removal struct {
	index  int
	forget bool // its guest's connections too
	done   chan error
}

// dismantle removes the link and the namespace of an index, as far as they exist, and if
// asked what the kernel remembers of its guest's connections.
func (r *removals) dismantle(index int, forget bool) error {
	this := removal{index: index, forget: forget, done: make(chan error, 1)}
	r.mu.Lock()
	r.waiting = append(r.waiting, this)
	begin := !r.running
	r.running = true
	r.mu.Unlock()
	if begin {
		go r.run()
	}
	return <-this.done
}

// run removes what is waiting until nothing is. What comes meanwhile makes the next batch.
func (r *removals) run() {
	for {
		r.mu.Lock()
		batch := r.waiting
		r.waiting = nil
		r.running = len(batch) > 0
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		var names []string
		var forget []int
		for _, one := range batch {
			names = append(names, linkName(one.index))
			if one.forget {
				forget = append(forget, one.index)
			}
		}
		err := r.removeLinks(names)
		results := make([]error, len(batch))
		for i, one := range batch {
			if err != nil {
				// One link's failure is not another's.
				results[i] = dismantle(one.index)
			} else {
				results[i] = removeNamespace(namespacePath(one.index))
			}
		}
		// Without its link a guest can open no more.
		r.forget(forget...)
		for i, one := range batch {
			one.done <- results[i]
		}
	}
}

// removeLinks removes links, as far as they exist, and with them their peers.
func (r *removals) removeLinks(names []string) error {
	if len(names) == 1 || r.group == 0 {
		var errs []error
		for _, name := range names {
			errs = append(errs, removeLink(name))
		}
		return errors.Join(errs...)
	}
	found := 0
	for _, name := range names {
		link, err := netlink.LinkByName(name)
		if isNoLink(err) {
			continue
		}
		if err == nil {
			err = netlink.LinkSetGroup(link, int(int32(r.group)))
		}
		if err != nil {
			return fmt.Errorf("mark %s for removal: %w", name, err)
		}
		found++
	}
	if found == 0 {
		return nil
	}
	deletions.Lock()
	defer deletions.Unlock()
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(r.group)))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("remove %d links: %w", found, err)
	}
	return nil
}

// dismantle removes the link and the namespace of an index by themselves.
func dismantle(index int) error {
	return errors.Join(removeLink(linkName(index)), removeNamespace(namespacePath(index)))
}
