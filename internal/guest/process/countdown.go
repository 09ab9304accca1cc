package process

import "time"

// countStep is the longest time that a countdown sleeps at once.
const countStep = time.Second

// maxLate is how late a timer of a running sandbox may be.
const maxLate = time.Second

// countdown counts time down, but only time in which the sandbox runs. The kernel's
// monotonic clock jumps forward by the length of a pause when a paused sandbox goes on, and
// a plain timer would be over at once: a command would be killed, or a reader cut off, for
// time that it never had. So the time is slept in steps, and one that took much too long
// counts for half of what it was to take: whether the sandbox was paused or had no
// processor cannot be told, and in either case the countdown must come to its end.
type countdown struct {
	left  time.Duration
	begun time.Time // the step that is being slept
	timer *time.Timer
}

// start begins to count d down, unless it has begun before.
func (c *countdown) start(d time.Duration) {
	if c.timer == nil {
		c.left, c.begun = d, time.Now()
		c.timer = time.NewTimer(min(d, countStep))
	}
}

// over is called when a value has come from the timer. It says whether all time has passed,
// and sleeps another step if not.
func (c *countdown) over() bool {
	now, step := time.Now(), min(c.left, countStep)
	if passed := now.Sub(c.begun); passed < step+maxLate {
		c.left -= passed
	} else {
		c.left -= step / 2
	}
	c.begun = now
	if c.left <= 0 {
		return true
	}
	c.timer.Reset(min(c.left, countStep))
	return false
}

// remaining is what is left to be counted down, at a time at which no step is over.
func (c *countdown) remaining() time.Duration {
	step := min(c.left, countStep)
	return c.left - min(step, time.Since(c.begun))
}

func (c *countdown) stop() {
	if c.timer != nil {
		c.timer.Stop()
	}
}
