package sandbox

import "slices"

// Points returns the names of all fault points: the moments between two steps of an
// operation, at which this process may die and the next one has to find everything in a
// state that is documented. Config.At is called at each.
func Points() []string {
	making := slices.Concat(keys(roomPhases), keys(launchPhases), keys(introducePhases))
	return slices.Concat(
		named("create", []string{"record"}, making, []string{"running"}),
		named("pause", keys(pausePhases), keys(endPhases), []string{"cleared", "undone"}),
		named("resume", keys(beforeResume), keys(launchPhases), keys(afterResume), []string{"running", "undone"}),
		named("former", keys(endPhases)), // what is left of the run before a resume
		named("snapshot", keys(imagePhases)),
		named("unsnapshot", []string{"begun", "removed"}),
		named("fork", keys(imagePhases), []string{"copied", "dropped"}),
		named("copy", []string{"record"}, making, []string{"running"}),
		named("warm", keys(launchPhases)),
		named("destroy", keys(destroyPhases), []string{"stopped"}),
		named("end", keys(endPhases), []string{"failed"}), // of a sandbox that has ended by itself
		named("adopt", keys(adoptPhases), keys(endPhases), []string{"untaken", "running"}),
		named("recover", []string{"entries", "runs", "slots", "snapshots"}),
	)
}

func keys[T any](phases []phase[T]) []string {
	var all []string
	for _, p := range phases {
		all = append(all, p.key)
	}
	return all
}

func named(operation string, keys ...[]string) []string {
	all := slices.Concat(keys...)
	for i, key := range all {
		all[i] = operation + "." + key
	}
	return all
}
