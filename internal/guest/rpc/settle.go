package rpc

import "net/http"

// settle notes every request when it has been answered, so that the memory that a burst of
// them took is given back after the last.
func (s *Server) settle(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.settler.Touch()
		next.ServeHTTP(w, r)
	})
}
