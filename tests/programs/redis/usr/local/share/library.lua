#!lua name=library
redis.register_function('double', function(keys, args) return args[1] * 2 end)
