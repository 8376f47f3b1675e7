package shop

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
)

// profile is what a customer's page begins with: all of it from one row, so that it is of one moment.
type profile struct {
	Name    string   `json:"name"`
	Address string   `json:"address"`
	Wishes  []string `json:"wishes"`
	Orders  int      `json:"orders"` // how many were ever made
}

// profile only shows something: it reads the local copy, which may be a moment old where the customer lives elsewhere.
func (s *Shop) profile(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var p profile
	err = s.DB.QueryRow(r.Context(), `SELECT name, address, wishes, orders_count FROM customers WHERE id = $1`, who).Scan(&p.Name, &p.Address, &p.Wishes, &p.Orders)
	if errors.Is(err, pgx.ErrNoRows) {
		return answer{http.StatusNotFound, "this shop does not know you"}
	} else if err != nil {
		return fmt.Errorf("profile of customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, p)
}
