package sandbox

import (
	"context"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// hostInfoAge is how old the known limits of the host may be. They change only when
// somebody changes the machine.
const hostInfoAge = 30 * time.Second

// hostInfoCache spares every create a question to the host. The zero value is ready, and
// it is safe for concurrent use.
type hostInfoCache struct {
	mu   sync.Mutex
	info HostInfo
	at   time.Time
}

func (c *hostInfoCache) get(ctx context.Context, host Host) (HostInfo, error) {
	c.mu.Lock()
	info, fresh := c.info, time.Since(c.at) < hostInfoAge
	c.mu.Unlock()
	if fresh {
		return info, nil
	}
	// Asked without the lock: a host that hangs must not hang those whose client gives up.
	info, err := host.Describe(ctx)
	if err != nil {
		return HostInfo{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.info, c.at = info, time.Now()
	return info, nil
}

// within returns an error that names the maximum which r goes beyond. A maximum of 0 is
// not known.
func (r Resources) within(limit Resources) error {
	for _, f := range []struct {
		field      string
		value, max int
		unit       string
	}{
		{"vcpus", r.VCPUs, limit.VCPUs, ""},
		{"memory_mb", r.MemoryMB, limit.MemoryMB, " MiB"},
		{"disk_size_mb", r.DiskMB, limit.DiskMB, " MiB"},
	} {
		if f.max > 0 && f.value > f.max {
			return fault.New(fault.InvalidRequest, "field %q is %d%s, and this host gives a sandbox at most %d%s",
				f.field, f.value, f.unit, f.max, f.unit)
		}
	}
	return nil
}
