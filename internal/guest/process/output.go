package process

import "sync"

// output is all that a process prints and how it ends, for any number of subscribers. It
// is safe for concurrent use.
type output struct {
	mu          sync.Mutex
	subscribers map[*Subscription]struct{}
	kept        scrollback
	over        bool
	end         End // valid once over
}

// subscribe returns a subscription to what begin chooses of the output so far, and to all
// that follows it, of which no byte is missing and none comes twice.
func (o *output) subscribe(begin func(*Subscription, *scrollback)) *Subscription {
	sub := newSubscription(o.forget)
	// What is kept and who is told of a piece of output change together, see publish.
	o.mu.Lock()
	defer o.mu.Unlock()
	begin(sub, &o.kept)
	if o.over {
		sub.push(Event{Kind: Ended, End: o.end}, nil) // has room at once
		return sub
	}
	if o.subscribers == nil {
		o.subscribers = make(map[*Subscription]struct{})
	}
	for other := range o.subscribers {
		give(other.joined)
	}
	o.subscribers[sub] = struct{}{}
	return sub
}

// shared says whether there are several subscribers.
func (o *output) shared() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.subscribers) > 1
}

// publish gives a piece of output to every subscriber, and takes over the caller's
// reference. It waits for those that have no room.
func (o *output) publish(kind Kind, b *buffer, n int) {
	defer b.release()
	ev := Event{Kind: kind, Data: b.data[:n], from: b}
	// One subscriber is the rule and gets its copy of the list without allocation.
	var few [4]*Subscription
	o.mu.Lock()
	o.kept.write(kind, ev.Data)
	subs := few[:0]
	for sub := range o.subscribers {
		subs = append(subs, sub)
	}
	o.mu.Unlock()
	for _, sub := range subs {
		b.retain()
		if !sub.push(ev, o.shared) {
			o.forget(sub)
		}
	}
}

// resize says that what prints has a terminal of this size from now on.
func (o *output) resize(size Size) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept.resize(size)
}

func (o *output) forget(sub *Subscription) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.subscribers, sub)
}

// finish tells every subscriber, and all that come later, how the process ended.
func (o *output) finish(end End) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over, o.end = true, end
	for sub := range o.subscribers {
		sub.push(Event{Kind: Ended, End: end}, nil) // always has room
	}
	o.subscribers = nil
}

// forgetKept gives back the memory of what was kept.
func (o *output) forgetKept() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = scrollback{lost: o.kept.end()}
}

// keptBytes returns how much memory the kept output takes.
func (o *output) keptBytes() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.kept.memory()
}
