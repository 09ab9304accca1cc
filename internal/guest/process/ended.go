package process

import "time"

const (
	// forgetStep and forgetSteps say how long the end of a process is known: a step more
	// than 30 seconds at most. Steps are counted, and not time, since a pause of the
	// sandbox is one step at most and no client had a chance to ask during it.
	forgetStep  = 10 * time.Second
	forgetSteps = 4
	// maxEnded bounds how many ended processes are known at a time.
	maxEnded = 10_000
	// maxEndedKept bounds how much output of all ended processes together is kept, in
	// bytes. Beyond it those that ended first lose theirs, and not their end.
	maxEndedKept = 2 << 20
)

// ended is a process that has ended and is still known.
type ended struct {
	*Process
	steps int
	kept  int // memory of its kept output, in bytes, once that is complete
}

// retire takes p off the processes that are running, and lets it be known as ended for a
// while.
func (m *Manager) retire(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[p.pid] == p {
		delete(m.live, p.pid)
	}
	if m.closed {
		return
	}
	if len(m.ended) == maxEnded {
		m.forget(m.ended[0])
		m.ended = m.ended[1:]
	}
	m.ended = append(m.ended, &ended{Process: p})
	if len(m.ended) == 1 {
		m.wg.Go(m.forgetEnded)
	}
}

// settle counts what an ended process keeps, now that it prints no more, and holds
// maxEndedKept.
func (m *Manager) settle(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := len(m.ended) - 1
	for i >= 0 && m.ended[i].Process != p {
		i--
	}
	if i < 0 {
		return // forgotten already
	}
	m.ended[i].kept = p.output.keptBytes()
	m.endedKept += m.ended[i].kept
	for _, e := range m.ended {
		if m.endedKept <= maxEndedKept {
			break
		}
		e.output.forgetKept()
		m.forget(e)
	}
}

// forget no longer counts what e keeps.
func (m *Manager) forget(e *ended) {
	m.endedKept -= e.kept
	e.kept = 0
}

// forgetEnded forgets ended processes until there are none.
func (m *Manager) forgetEnded() {
	tick := time.NewTicker(forgetStep)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.stop:
			return
		}
		if m.forgetOnce() {
			return
		}
	}
}

// forgetOnce counts a step, and says whether no ended process is known any more.
func (m *Manager) forgetOnce() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.ended[:0]
	for _, e := range m.ended {
		if e.steps++; e.steps < forgetSteps {
			known = append(known, e)
			continue
		}
		m.forget(e)
	}
	clear(m.ended[len(known):])
	if m.ended = known; len(known) == 0 {
		m.ended = nil
	}
	return len(known) == 0
}
