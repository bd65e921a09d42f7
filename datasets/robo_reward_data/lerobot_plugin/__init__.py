"""Our models as LeRobot plug-ins: `--ext.discover_packages_path=robo_reward_data.lerobot_plugin`.

LeRobot finds the parts by the names of modules and classes; every module here imports LeRobot (extra `data`),
this one does not.

  reward model `robo_reward`   `--reward_model.type=robo_reward`, `make_reward_model`, `from_pretrained`
  policy `weighted_act`        ACT whose loss takes sample weights: `--policy.type=weighted_act` with
                               `--sample_weighting.type=rabc`
  `hil_serl.register`          our reward in LeRobot's actor and learner (HIL-SERL)

`lerobot-train` does not train the reward model and says so: demonstrations only succeed, and what keeps a
progress model from learning the clock are the failures that `robo-reward train` makes of them (rewound, held,
cut short, told another instruction), which LeRobot's data loader has no place for.
"""
