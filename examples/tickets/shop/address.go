package shop

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
)

// address is where a customer's printed tickets go.
type address struct {
	Address *string `json:"address"`
}

func (s *Shop) address(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var a address
	err = s.DB.QueryRow(r.Context(), `SELECT address FROM customers WHERE id = $1`, who).Scan(&a.Address)
	if errors.Is(err, pgx.ErrNoRows) {
		return answer{http.StatusNotFound, "this shop does not know you"}
	} else if err != nil {
		return fmt.Errorf("address of customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, a)
}

// setAddress answers with what stands afterwards. Repeating it changes nothing.
func (s *Shop) setAddress(w http.ResponseWriter, r *http.Request) error {
	who, err := customer(r)
	if err != nil {
		return err
	}
	var a address
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil || a.Address == nil || len(*a.Address) > 200 {
		return answer{http.StatusBadRequest, `want {"address": "text of at most 200 bytes"}`}
	}
	err = s.inTx(r.Context(), func(look *pgx.Batch) {
		look.Queue(`UPDATE customers SET address = $2 WHERE id = $1 RETURNING address`, who, *a.Address).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&a.Address)
			if errors.Is(err, pgx.ErrNoRows) {
				return answer{http.StatusNotFound, "this shop does not know you"}
			}
			return err
		})
	}, nothing)
	if err != nil {
		return fmt.Errorf("set the address of customer %s: %w", who, err)
	}
	return writeJSON(w, http.StatusOK, a)
}
