"""Many runs: which they are (`space`, `plan`), where they run (`places`, `job`, `queue`, `status`), what is chosen by them (`study`,
`table`, `pictures`). Optuna searches and submitit starts jobs; both come with the group `sweep` of requirements-extra.txt."""
