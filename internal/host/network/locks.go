package network

import "sync"

// indexLocks serialises work on each index of a slot. The zero value is ready to use.
type indexLocks struct {
	mu   sync.Mutex
	busy map[int]*indexLock
}

// indexLock is there while anyone has it or waits for it.
type indexLock struct {
	mu    sync.Mutex
	users int // guarded by indexLocks.mu
}

// lock waits until nobody else works on index, and returns what ends our own work on it.
func (l *indexLocks) lock(index int) (unlock func()) {
	l.mu.Lock()
	if l.busy == nil {
		l.busy = make(map[int]*indexLock)
	}
	one := l.busy[index]
	if one == nil {
		one = new(indexLock)
		l.busy[index] = one
	}
	one.users++
	l.mu.Unlock()

	one.mu.Lock()
	return func() { l.unlock(index, one) }
}

// tryLock is lock for who has a choice of indexes: idle is whether nobody worked on this one.
func (l *indexLocks) tryLock(index int) (unlock func(), idle bool) {
	l.mu.Lock()
	_, busy := l.busy[index]
	l.mu.Unlock()
	if busy {
		return nil, false
	}
	return l.lock(index), true
}

func (l *indexLocks) unlock(index int, one *indexLock) {
	one.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.busy, index)
	}
}
