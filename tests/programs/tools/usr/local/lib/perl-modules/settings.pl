{ unit => 'packages' }
