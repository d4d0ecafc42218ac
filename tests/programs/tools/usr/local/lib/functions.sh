log() { echo "$(date +%s) $*"; }
log "sourced with $# arguments"
