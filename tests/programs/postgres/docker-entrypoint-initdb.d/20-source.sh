echo "sourced by $0"
psql -d app -c 'CREATE EXTENSION pgcrypto'
